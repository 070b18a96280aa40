# The built-in digits in ADE20K layout (tools/data/make_digits.py writes them to data/digits):
# label 0 = ignored, 1 = background, 2...11 = the digits zero...nine. Pipelines and batch
# sizes stand in the experiment's own file.
_base_ = './ade20k.py'

data_root = 'data/digits/ade'
metainfo = dict(
    classes=('background', 'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight',
             'nine'),
    palette=[[60, 60, 60], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200],
             [245, 130, 48], [145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60],
             [0, 128, 128]])

train_dataloader = dict(
    num_workers=2,
    dataset=dict(type='BaseSegDataset', metainfo=metainfo, data_root=data_root))
val_dataloader = dict(
    num_workers=2,
    dataset=dict(type='BaseSegDataset', metainfo=metainfo, data_root=data_root))
test_dataloader = val_dataloader
