# Mask R-CNN, ViG-H-B, COCO, 1x schedule: the recipe of ViG-H-T; initial weights: vig_h_b.pth.
_base_ = './mask-rcnn_vig-h-t_fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.6),
    neck=dict(in_channels=[128, 256, 512, 1024]))
