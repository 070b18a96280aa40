# ViG-S, ImageNet-1K validation at 384x384 (test only) as for ViG-T.
# The rest is that of vig-s_8xb128_in1k.py.
_base_ = './vig-t_in1k-384px_test.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2), head=dict(in_channels=384))
lr_per_512 = 5e-4
optim_wrapper = dict(optimizer=dict(lr=lr_per_512 * 1024 / 512, weight_decay=0.1))
_base_.param_scheduler[0].start_factor = 5e-7 / lr_per_512
_base_.param_scheduler[1].eta_min_ratio = 5e-6 / lr_per_512
