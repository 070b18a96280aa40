# VOLO-D1 of timm (arXiv 2106.13112): Mask R-CNN, COCO, 1x, 1024x1024.
# The recipe of ViG-H-T with another backbone and neck: nothing else differs, drop path included.
# VOLO has no feature pyramid (strides 8 and 16 only): ViTDet's neck makes one of its last map, in
# place of the FPN. timm's VOLO takes images of one size, that of its position embedding, 1024x1024
# here; timm's ImageNet weights are for 224x224 and 384x384 and do not fit, so this trains from
# random weights.
_base_ = './mask-rcnn_vig-h-t_fpn_1x_coco-1024x1024.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='volo_d1_224',
        features_only=True,
        out_indices=(3, ),
        img_size=1024,
        drop_path_rate=0.2),
    neck=dict(
        _delete_=True, type='vig_mm.SimplePyramid', in_channels=384, out_channels=256, num_outs=5))

# Its stem has BatchNorm, and a GPU sees two images.
sync_bn = 'torch'
