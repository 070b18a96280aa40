# Swin-T (arXiv 2103.14030): ImageNet-1K, 224x224, 300 epochs.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
_base_ = '../vig-h-t_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch='tiny',
        img_size=224,
        drop_path_rate=0.2))

# Position biases do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.))))
