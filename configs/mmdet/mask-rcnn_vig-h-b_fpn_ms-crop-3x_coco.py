# Mask R-CNN, ViG-H-B, COCO, 3x schedule, multi-scale training: the recipe of ViG-H-T.
_base_ = './mask-rcnn_vig-h-t_fpn_ms-crop-3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.6),
    neck=dict(in_channels=[128, 256, 512, 1024]))
