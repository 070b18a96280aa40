# UperNet, ViG-H-B, ADE20K, 160k iterations: the recipe of ViG-H-T; initial weights: vig_h_b.pth.
_base_ = './vig-h-t_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.6),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
