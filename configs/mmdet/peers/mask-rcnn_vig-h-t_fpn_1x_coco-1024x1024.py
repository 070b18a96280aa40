# Mask R-CNN, ViG-H-T, COCO, 1x, every image in the upper left of 1024x1024 pixels.
# For comparison with backbones that take one size of image only; the other 1x configs train and
# test at 1333x800, which is another protocol.
_base_ = '../mask-rcnn_vig-h-t_fpn_1x_coco.py'

model = dict(data_preprocessor=dict(pad_size_divisor=1024))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),
    *_base_.test_pipeline[2:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# --tta: three scales, each plain and flipped
_base_.tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=scale, keep_ratio=True)
    for scale in [(640, 640), (800, 800), (1024, 1024)]
]
