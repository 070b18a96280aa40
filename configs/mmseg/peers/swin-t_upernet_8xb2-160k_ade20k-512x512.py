# Swin-T (arXiv 2103.14030): UperNet, ADE20K, crop 512x512, 160k iterations.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
_base_ = '../vig-h-t_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,
        drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))

# Position biases do not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.))))
