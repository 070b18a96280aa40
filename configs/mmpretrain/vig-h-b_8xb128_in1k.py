# ViG-H-B, ImageNet-1K, 300 epochs: the recipe of ViG-H-T with another rate.
_base_ = './vig-h-t_8xb128_in1k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.6), head=dict(in_channels=1024))
lr_per_512 = 5e-4
optim_wrapper = dict(optimizer=dict(lr=lr_per_512 * 1024 / 512))
_base_.param_scheduler[0].start_factor = 5e-7 / lr_per_512
_base_.param_scheduler[1].eta_min_ratio = 5e-6 / lr_per_512
