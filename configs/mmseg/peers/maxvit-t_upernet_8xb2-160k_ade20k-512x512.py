# MaxViT-T of timm (arXiv 2204.01697), relative positions by an MLP: UperNet, ADE20K, crop 512x512,
# 160k iterations.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included, but that
# test images are padded to multiples of 256: windows and grids of 8 must tile the map of stride 32.
_base_ = '../vig-h-t_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=256)),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='maxvit_rmlp_tiny_rw_256',
        features_only=True,
        out_indices=(1, 2, 3, 4),
        drop_path_rate=0.2),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))

# Its convolutions have BatchNorm, and a GPU sees two images.
sync_bn = 'torch'

# Position biases do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'rel_pos.mlp': dict(decay_mult=0.)}))
