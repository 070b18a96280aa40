# Swin-T (arXiv 2103.14030): Mask R-CNN, COCO, 1x, 1333x800.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
_base_ = '../mask-rcnn_vig-h-t_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,
        drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]))

# Position biases do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.))))
