# VOLO-D1 of timm (arXiv 2106.13112): UperNet, ADE20K, crop 512x512, 160k iterations.
# The recipe of ViG-H-T with another backbone and a neck: nothing else in training differs.
# VOLO has no feature pyramid (strides 8 and 16 only): ViTDet's neck makes one of its last map.
# timm's VOLO takes images of one size, that of its position embedding, 512x512 here; timm's
# ImageNet weights are for 224x224 and 384x384 and do not fit, so this trains from random weights.
# Tested in sliding windows; for ViG-H-T tested the same way:
#   --cfg-options model.data_preprocessor.test_cfg.size="(512,512)" model.test_cfg.mode=slide \
#                 model.test_cfg.crop_size="(512,512)" model.test_cfg.stride="(341,341)"
_base_ = '../vig-h-t_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    # Larger images are cut into overlapping windows of 512x512, smaller ones padded to one.
    data_preprocessor=dict(test_cfg=dict(size=(512, 512))),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='volo_d1_224',
        features_only=True,
        out_indices=(3, ),
        img_size=512,
        drop_path_rate=0.2),
    neck=dict(type='vig_mm.SimplePyramid', in_channels=384, out_channels=256, num_outs=4),
    decode_head=dict(in_channels=[256, 256, 256, 256]),
    auxiliary_head=dict(in_channels=256),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))

# Its stem has BatchNorm, and a GPU sees two images.
sync_bn = 'torch'
