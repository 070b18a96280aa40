# GC ViT-T of timm (arXiv 2206.09959): UperNet, ADE20K, crop 512x512, 160k iterations.
# The recipe of ViG-H-T with another backbone: nothing else in training differs, drop path included.
# timm's GC ViT takes images of one size, 512x512 here: each stage's global queries must shrink to
# exactly one window (8, 8, 16 and 8 wide, as the paper's 7, 7, 14 and 7 do not tile it). timm's
# ImageNet weights are for 224x224 and do not fit, so this trains from random weights.
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
        model_name='gcvit_tiny',
        features_only=True,
        img_size=512,
        window_size=(8, 8, 16, 8),
        drop_path_rate=0.2),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))

# Position biases do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.))))
