# 300 epochs of AdamW with batches of 1024, 20 epochs of warm-up, cosine decay, averaged weights.
# The public rates (peak, first, last) are per 512 images of global batch and scale linearly.
lr_per_512 = 1e-3
# No decay on biases, on anything 1-D (every norm, RMSNorm included) and on pos_embed.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=lr_per_512 * 1024 / 512, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        flat_decay_mult=0.,
        custom_keys=dict(pos_embed=dict(decay_mult=0.))))

max_epochs, warmup_epochs = 300, 20
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=5e-7 / lr_per_512,
        by_epoch=True,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=5e-6 / lr_per_512,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)

# Decay 0.9999: mmengine counts the other way round, momentum = 1 - decay. Validation and saved
# weights are the averaged ones.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=1e-4,
        priority='ABOVE_NORMAL')
]

auto_scale_lr = dict(enable=False, base_batch_size=1024)
