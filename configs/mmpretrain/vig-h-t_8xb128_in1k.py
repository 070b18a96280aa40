# ViG-H-T, ImageNet-1K, 300 epochs, 8 GPUs x 128 images, mixed precision (fp16).
# The recipe of the public weights.
_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e.py', '../_base_/mmpretrain_runtime.py'
]

model = dict(
    backbone=dict(
        type='vig_mm.HierViG', arch='tiny', out_indices=(3, ), drop_path_rate=0.2),
    head=dict(in_channels=768))

lr_per_512 = 8e-4
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(lr=lr_per_512 * 1024 / 512))
_base_.param_scheduler[0].start_factor = 5e-7 / lr_per_512
_base_.param_scheduler[1].eta_min_ratio = 5e-6 / lr_per_512
