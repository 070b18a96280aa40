# DeiT-T of timm (arXiv 2012.12877): ImageNet-1K, 224x224, 300 epochs.
# The recipe of ViG-T with another model: nothing else differs, but for DeiT's drop path. Its
# position embedding is resized to the image, so that it can be tested at other sizes.
_base_ = '../vig-t_8xb128_in1k.py'

model = dict(
    _delete_=True,
    type='TimmClassifier',
    model_name='deit_tiny_patch16_224',
    num_classes=1000,
    dynamic_img_size=True,
    drop_path_rate=0.1,
    loss={{_base_.model.head.loss}},
    data_preprocessor={{_base_.model.data_preprocessor}},
    train_cfg={{_base_.model.train_cfg}})

# The class token does not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(cls_token=dict(decay_mult=0.))))
