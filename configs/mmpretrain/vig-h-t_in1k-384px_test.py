# ViG-H-T, ImageNet-1K validation at 384x384 with weights trained at 224x224 (test only).
# Same convention as at 224: short side int(384 * 256 / 224) = 438, bicubic, centre crop.
_base_ = './vig-h-t_8xb128_in1k.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge', scale=438, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
test_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))

tta_pipeline = [*test_pipeline[:3], _base_.tta_pipeline[-1]]
