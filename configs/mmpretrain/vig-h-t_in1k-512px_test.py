# ViG-H-T, ImageNet-1K validation at 512x512 with weights trained at 224x224 (test only).
# Same convention as at 224: short side int(512 * 256 / 224) = 585, bicubic, centre crop.
_base_ = './vig-h-t_8xb128_in1k.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge', scale=585, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=512),
    dict(type='PackInputs'),
]
test_dataloader = dict(batch_size=32, dataset=dict(pipeline=test_pipeline))

tta_pipeline = [*test_pipeline[:3], _base_.tta_pipeline[-1]]
