# Cascade Mask R-CNN, ViG-H-S, COCO, 3x schedule: the recipe of ViG-H-T; initial weights:
# vig_h_s.pth.
_base_ = './cascade-mask-rcnn_vig-h-t_fpn_4conv1fc-giou_ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
