# ViG-H-B, ImageNet-1K validation at 384x384 (test only) as for ViG-H-T.
# The rest is that of vig-h-b_8xb128_in1k.py.
_base_ = './vig-h-t_in1k-384px_test.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.6), head=dict(in_channels=1024))
lr_per_512 = 5e-4
optim_wrapper = dict(optimizer=dict(lr=lr_per_512 * 1024 / 512))
_base_.param_scheduler[0].start_factor = 5e-7 / lr_per_512
_base_.param_scheduler[1].eta_min_ratio = 5e-6 / lr_per_512
