# MaxViT-T of timm (arXiv 2204.01697), relative positions by an MLP: ImageNet-1K, 224x224,
# 300 epochs.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included. Windows and
# grids are of 7, which tile 224x224, and not of 8 as in the dense configs.
_base_ = '../vig-h-t_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='maxvit_rmlp_tiny_rw_256',
        img_size=224,
        drop_path_rate=0.2),
    head=dict(in_channels=512))

# Position biases do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'rel_pos.mlp': dict(decay_mult=0.)}))
