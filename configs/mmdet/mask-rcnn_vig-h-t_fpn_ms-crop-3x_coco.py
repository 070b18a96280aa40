# Mask R-CNN, ViG-H-T, COCO, 3x schedule (36 epochs), multi-scale training, 8 GPUs x 2 images.
# Model, optimiser (AdamW 1e-4, weight decay 0.05) and test at 1333x800 are those of the 1x config.
_base_ = './mask-rcnn_vig-h-t_fpn_1x_coco.py'

# Scales of multi-scale training: short side 480 to 800 in steps of 32, long side up to 1333.
scales = [(short, 1333) for short in range(480, 801, 32)]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    # either resized at once, or resized, cropped and resized again, with even odds
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)],
            [
                dict(
                    type='RandomChoiceResize',
                    scales=[(400, 1333), (500, 1333), (600, 1333)],
                    keep_ratio=True),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True),
                dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
            ],
        ]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

max_epochs = 36
_base_.param_scheduler[1].update(end=max_epochs, milestones=[27, 33])
train_cfg = dict(max_epochs=max_epochs)
