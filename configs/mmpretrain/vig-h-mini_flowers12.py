# A data set of one's own, as an example: 12 kinds of flowers, 60 photographs of each, in ImageNet
# folders, trained from scratch on a CPU.
_base_ = './vig-h-mini_digits.py'

data_root = 'data/flowers12'

model = dict(
    data_preprocessor=dict(num_classes=12),
    backbone=dict(drop_path_rate=0.1),
    head=dict(num_classes=12),
    train_cfg=dict(augments=dict(type='CutMix', alpha=1.0), probs=0.5))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=112, crop_ratio_range=(0.3, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.2),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=128, edge='short'),
    dict(type='CenterCrop', crop_size=112),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-3))
max_epochs = 120
_base_.param_scheduler[0].end = 100
_base_.param_scheduler[1].end = max_epochs
train_cfg = dict(max_epochs=max_epochs, val_interval=10)

tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='ResizeEdge', scale=128, edge='short')],
            [dict(type='CenterCrop', crop_size=112)],
            [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
            [dict(type='PackInputs')],
        ]),
]
