# ViG-B, ImageNet-1K, weights, gradients and optimizer sharded over the GPUs (FSDP). The recipe of
# vig-b_8xb128_in1k.py without averaged weights: mmengine's EMAHook copies the model, and the shards
# of one cannot be copied.
#
# Start it with a launcher: tools/dist_train.sh, or `mim train ... --launcher pytorch --gpus 8`.
# Checkpoints hold the whole weights and load without FSDP, too.
_base_ = './vig-b_8xb128_in1k.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='vig_mm.FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,
        auto_wrap_policy='vig_mm.wrap_blocks'),
    state_dict_cfg='full')

custom_hooks = []
