# The built-in digits in COCO layout (tools/data/make_digits.py writes them to data/digits).
# Pipelines and batch sizes stand in the experiment's own file.
_base_ = './coco_instance.py'

data_root = 'data/digits/coco/'
# Every loader gets the same classes: mmdet silently drops what is not listed.
metainfo = dict(
    classes=('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'))

train_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/')))
val_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/')))
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator
