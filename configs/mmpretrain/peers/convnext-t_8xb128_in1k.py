# ConvNeXt-T (arXiv 2201.03545): ImageNet-1K, 224x224, 300 epochs.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
_base_ = '../vig-h-t_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch='tiny',
        drop_path_rate=0.2),
    neck=None)
