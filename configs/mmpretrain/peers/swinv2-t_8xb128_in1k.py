# SwinV2-T (arXiv 2111.09883): ImageNet-1K, 224x224, 300 epochs.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
# Windows of 7, so that they tile 224x224; the paper trains at 256x256 with windows of 8 or 16.
_base_ = '../vig-h-t_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformerV2',
        arch='tiny',
        img_size=224,
        window_size=7,
        drop_path_rate=0.2))

# Position biases and temperatures do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(cpb_mlp=dict(decay_mult=0.), logit_scale=dict(decay_mult=0.))))
