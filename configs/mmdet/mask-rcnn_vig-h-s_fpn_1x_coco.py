# Mask R-CNN, ViG-H-S, COCO, 1x schedule: the recipe of ViG-H-T; initial weights: vig_h_s.pth.
_base_ = './mask-rcnn_vig-h-t_fpn_1x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
