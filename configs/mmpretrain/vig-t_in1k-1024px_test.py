# ViG-T, ImageNet-1K validation at 1024x1024 with weights trained at 224x224 (test only).
# Same convention as at 224: short side int(1024 * 256 / 224) = 1170, bicubic, centre crop.
# pos_embed keeps the 14x14 grid of the weights; the backbone resizes it to 64x64 (bicubic)
# in the forward pass.
_base_ = './vig-t_8xb128_in1k.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge', scale=1170, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=1024),
    dict(type='PackInputs'),
]
test_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))

tta_pipeline = [*test_pipeline[:3], _base_.tta_pipeline[-1]]
