# UperNet, ViG-B with ViT-Adapter, ADE20K, 160k iterations: the recipe of ViG-T
# with another rate and layer decay; initial weights: vig_b.pth.
_base_ = './vig-t-adapter_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
    decode_head=dict(in_channels=[768, 768, 768, 768]),
    auxiliary_head=dict(in_channels=768))
optim_wrapper = dict(optimizer=dict(lr=6e-5), paramwise_cfg=dict(decay_rate=0.80))
