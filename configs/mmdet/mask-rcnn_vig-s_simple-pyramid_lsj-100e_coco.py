# Mask R-CNN, ViG-S with ViTDet's simple pyramid, COCO, 100 epochs: the recipe of ViG-T; initial
# weights: vig_s.pth.
_base_ = './mask-rcnn_vig-t_simple-pyramid_lsj-100e_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2), neck=dict(in_channels=384))
