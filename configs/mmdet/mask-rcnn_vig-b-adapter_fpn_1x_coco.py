# Mask R-CNN, ViG-B with ViT-Adapter, COCO, 1x schedule: the recipe of ViG-T with another rate and
# weight decay; initial weights: vig_b.pth.
_base_ = './mask-rcnn_vig-t-adapter_fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
    neck=dict(in_channels=[768, 768, 768, 768]))
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
