# ViG-H-S, ImageNet-1K validation at 1024x1024 with weights trained at 224x224 (test only).
# Same convention as at 224: short side int(1024 * 256 / 224) = 1170, bicubic, centre crop.
_base_ = './vig-h-s_8xb128_in1k.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge', scale=1170, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=1024),
    dict(type='PackInputs'),
]
test_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))

tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge', scale=1170, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=1024),
    dict(
        type='TestTimeAug',
        transforms=[[dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
                    [dict(type='PackInputs')]]),
]
