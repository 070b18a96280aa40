# MaxViT-T of timm (arXiv 2204.01697), relative positions by an MLP: Mask R-CNN, COCO, 1x, 1333x800.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included, but that
# images are padded to multiples of 256: windows and grids of 8 must tile the map of stride 32.
_base_ = '../mask-rcnn_vig-h-t_fpn_1x_coco.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=256),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='maxvit_rmlp_tiny_rw_256',
        features_only=True,
        out_indices=(1, 2, 3, 4),
        drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]))

# Its convolutions have BatchNorm, and a GPU sees two images.
sync_bn = 'torch'

# Position biases do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'rel_pos.mlp': dict(decay_mult=0.)}))
