# ViG-B, ImageNet-1K validation at 1024x1024 (test only) as for ViG-T.
# The rest is that of vig-b_8xb128_in1k.py.
_base_ = './vig-t_in1k-1024px_test.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.5), head=dict(in_channels=768))
