# VOLO-D1 of timm (arXiv 2106.13112): ImageNet-1K, 224x224, 300 epochs.
# The recipe of ViG-H-T with another model: nothing else differs, drop path included. The whole
# classifier is timm's, because its class attention and its second head, over all tokens, belong to
# it; token labels, which the paper trains with, are not part of this recipe.
_base_ = '../vig-h-t_8xb128_in1k.py'

model = dict(
    _delete_=True,
    type='TimmClassifier',
    model_name='volo_d1_224',
    num_classes=1000,
    drop_path_rate=0.2,
    loss={{_base_.model.head.loss}},
    data_preprocessor={{_base_.model.data_preprocessor}},
    train_cfg={{_base_.model.train_cfg}})

# The class token does not decay, as pos_embed does not.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(cls_token=dict(decay_mult=0.))))
