# GC ViT-T of timm (arXiv 2206.09959): Mask R-CNN, COCO, 1x, 1024x1024.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
# timm's GC ViT takes images of one size, 1024x1024 here: each stage's global queries must shrink to
# exactly one window (8, 8, 16 and 8 wide, as the paper's 7, 7, 14 and 7 do not tile it). timm's
# ImageNet weights are for 224x224 and do not fit, so this trains from random weights.
_base_ = './mask-rcnn_vig-h-t_fpn_1x_coco-1024x1024.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='gcvit_tiny',
        features_only=True,
        img_size=1024,
        window_size=(8, 8, 16, 8),
        drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]))

# Position biases do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.))))
