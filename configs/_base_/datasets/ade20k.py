# ADE20K (150 classes), expected under data/ade/ADEChallengeData2016:
#   images/{training,validation}/*.jpg
#   annotations/{training,validation}/*.png (0 = ignored, 1...150)
# Pipelines and batch sizes belong to the recipe and stand in the experiment's own file.
data_root = 'data/ade/ADEChallengeData2016'

train_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KDataset',
        reduce_zero_label=True,
        data_root=data_root,
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KDataset',
        reduce_zero_label=True,
        data_root=data_root,
        data_prefix=dict(
            img_path='images/validation', seg_map_path='annotations/validation')))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
