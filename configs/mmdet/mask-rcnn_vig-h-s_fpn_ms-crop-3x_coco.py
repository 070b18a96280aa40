# Mask R-CNN, ViG-H-S, COCO, 3x schedule, multi-scale training: the recipe of ViG-H-T.
_base_ = './mask-rcnn_vig-h-t_fpn_ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
