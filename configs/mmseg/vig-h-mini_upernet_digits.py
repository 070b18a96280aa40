# A small UperNet on the built-in digits: trains from scratch on two CPU cores in minutes.
# `python tools/data/make_digits.py` writes the data.
_base_ = [
    '../_base_/models/upernet.py', '../_base_/datasets/digits_semantic.py',
    '../_base_/mmseg_runtime.py'
]

crop_size = (128, 128)
# Nine pixels in ten are background; Dice makes every digit class count, or they come very late.
loss_decode = [
    dict(type='CrossEntropyLoss', loss_weight=1.0),
    dict(type='DiceLoss', loss_weight=1.0, ignore_index=255)
]
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        type='vig_mm.HierViG',
        arch='tiny',
        embed_dims=32,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.),
    decode_head=dict(
        in_channels=[32, 64, 128, 256], channels=64, num_classes=11, loss_decode=loss_decode),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=11, loss_decode=loss_decode))

# No flips: a mirrored digit is another digit.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.95),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(side, side), keep_ratio=True)
                for side in (112, 128, 160)
            ],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ]),
]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0., flat_decay_mult=0.))

max_iters = 2000
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=100, end=max_iters),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=500)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=500, max_keep_ckpts=2))

auto_scale_lr = dict(enable=False, base_batch_size=4)
