# SwinV2-T (arXiv 2111.09883): Mask R-CNN, COCO, 1x, 1333x800.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
# Windows of 8, as in the public weights, which were trained at 256x256.
_base_ = '../mask-rcnn_vig-h-t_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformerV2',
        arch='tiny',
        window_size=8,
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,
        drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]))

# Position biases and temperatures do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(cpb_mlp=dict(decay_mult=0.), logit_scale=dict(decay_mult=0.))))
