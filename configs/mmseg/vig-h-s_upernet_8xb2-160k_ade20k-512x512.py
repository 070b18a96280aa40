# UperNet, ViG-H-S, ADE20K, 160k iterations: the recipe of ViG-H-T; initial weights: vig_h_s.pth.
_base_ = './vig-h-t_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
