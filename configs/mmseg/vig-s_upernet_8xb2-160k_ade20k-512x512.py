# UperNet, ViG-S through the plain multi-level neck, ADE20K, 160k iterations: the recipe of ViG-T
# with another rate and layer decay; initial weights: vig_s.pth.
_base_ = './vig-t_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.2),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384))
optim_wrapper = dict(optimizer=dict(lr=6e-5), paramwise_cfg=dict(decay_rate=0.85))
