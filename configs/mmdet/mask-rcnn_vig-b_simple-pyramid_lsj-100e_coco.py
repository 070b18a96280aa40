# Mask R-CNN, ViG-B with ViTDet's simple pyramid, COCO, 100 epochs: the recipe of ViG-T; initial
# weights: vig_b.pth.
_base_ = './mask-rcnn_vig-t_simple-pyramid_lsj-100e_coco.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.3), neck=dict(in_channels=768))
