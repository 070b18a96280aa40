# ViG-T, ImageNet-1K, 300 epochs, 8 GPUs x 128 images, float32.
# The recipe of the public weights.
_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e.py', '../_base_/mmpretrain_runtime.py'
]

model = dict(
    backbone=dict(
        type='vig_mm.ViG', arch='tiny', img_size=224, out_indices=-1, drop_path_rate=0.),
    head=dict(in_channels=192))
