# HorNet-T with 7x7 convolutions (arXiv 2207.14284): Mask R-CNN, COCO, 1x, 1333x800.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
_base_ = '../mask-rcnn_vig-h-t_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.HorNet',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]))
