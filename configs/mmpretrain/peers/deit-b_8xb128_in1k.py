# DeiT-B of timm: ImageNet-1K, 224x224, 300 epochs, as DeiT-T.
_base_ = './deit-t_8xb128_in1k.py'

model = dict(model_name='deit_base_patch16_224')
