# HorNet-T with 7x7 convolutions (arXiv 2207.14284): ImageNet-1K, 224x224, 300 epochs.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
_base_ = '../vig-h-t_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='HorNet',
        arch='tiny',
        drop_path_rate=0.2),
    neck=None,
    head=dict(in_channels=512))
