"""Train a detector, segmentor or classifier: the config's `default_scope` decides.

Example: python tools/train.py configs/mmdet/mask-rcnn_vig-h-mini_fpn_digits.py
"""

# ruff: noqa: E402
import argparse

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

from mmengine.config import Config
from mmengine.device import is_cuda_available, is_npu_available
from mmengine.logging import print_log
from mmengine.runner import Runner

from vig_mm.apis.launch import add_arguments, build_runner, load_config, run, skippable
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.checks.config import check_loop, check_optimizer, seed
from vig_mm.checks.data import prepare_data
from vig_mm.checks.data.guard import guard_loaders
from vig_mm.checks.model import check_channels, check_options
from vig_mm.checks.recipe import check_recipe, recipe_notes
from vig_mm.checks.weights import bare_model, check_initial_weights, check_weights
from vig_mm.engine.hooks.start_hook import StartHook, backbone_start
from vig_mm.engine.loops.resume import (
    how_to_resume,
    latest_checkpoint,
    make_resumable,
    take_seed,
)
from vig_mm.errors import UsageError
from vig_mm.registry import type_name

BF16_WRAPPER = "vig_mm.Bf16OptimWrapper"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from this checkpoint; without a value from the latest whole one in the "
        "work dir, if there is one",
    )
    parser.add_argument(
        "--amp",
        nargs="?",
        const="fp16",
        choices=("fp16", "bf16"),
        help="mixed precision: fp16 with loss scaling (the default; needs a GPU), or bf16, which "
        "needs no scaling and runs on a CPU, too",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate from auto_scale_lr.base_batch_size to the real batch size",
    )
    parser.add_argument("--seed", type=seed, help="seed of weights, data order and augmentation")
    return parser.parse_args()


def set_precision(cfg: Config, amp: str | None) -> None:
    """Turn the mixed precision of `--amp` on, and fp16 off where there is no GPU for it."""
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper) or "OptimWrapper"
    on_gpu = is_cuda_available() or is_npu_available()
    if amp == "fp16" and not on_gpu:
        raise UsageError(
            "--amp (fp16) needs a GPU, and none is available: leave it out, or use --amp bf16"
        )
    if amp and kind not in ("OptimWrapper", "AmpOptimWrapper", type_name(BF16_WRAPPER)):
        raise UsageError(
            f"--amp: optim_wrapper.type={kind!r} is not known to take it: leave --amp out, and set "
            "the precision in the config"
        )
    if amp == "fp16":
        wrapper.type, wrapper.dtype = "AmpOptimWrapper", "float16"
        wrapper.setdefault("loss_scale", "dynamic")
    elif amp == "bf16" or (kind == "AmpOptimWrapper" and not on_gpu):
        if not amp:
            print_log("no GPU: training in float32, not in the mixed precision of the config")
        wrapper.type = BF16_WRAPPER if amp else "OptimWrapper"
        for option in ("loss_scale", "dtype", "use_fsdp"):
            wrapper.pop(option, None)


def check_config(cfg: Config, check: bool) -> list[str]:
    """Check optimizer, data and model before anything is built; repair the data; what to log."""
    if check:
        check_optimizer(cfg)
        check_recipe(cfg)
    lines = prepare_data(cfg, ("train", "val"), check)
    if check:
        check_options(cfg)
        check_initial_weights(cfg.model)
    return lines


def check_model(cfg: Config, runner: Runner) -> list[str]:
    """Check the built model, let the data sets that come name their bad files; what to log."""
    guard_loaders(runner)
    check_channels(bare_model(runner.model), cfg.model)
    lines = recipe_notes(cfg, bare_model(runner.model))
    if not cfg.get("load_from"):
        return lines
    resume = bool(cfg.get("resume"))
    return lines + check_weights(runner.model, cfg.load_from, partly=not resume, resume=resume)


def set_start(cfg: Config, resume: str | None) -> None:
    """Decide what training starts from: `--resume`, else the config's `load_from`."""
    if resume is None and cfg.get("resume") and not cfg.get("load_from"):
        resume = "auto"
    if resume == "auto":
        # Without a checkpoint yet (the first start of a job that is restarted), `load_from` counts.
        resume = latest_checkpoint(cfg.work_dir)
    if resume is not None:
        cfg.resume = True
        cfg.load_from = resume
    if cfg.get("load_from"):
        cfg.load_from = prepare_checkpoint(cfg.load_from, cfg.work_dir)


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if args.seed is not None:
        cfg.randomness = {**cfg.get("randomness", {}), "seed": args.seed}
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise UsageError(f"--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size")
        cfg.auto_scale_lr.enable = True
    check_loop(cfg, "train")
    set_precision(cfg, args.amp)
    make_resumable(cfg)
    set_start(cfg, args.resume)
    if cfg.get("resume") and cfg.get("load_from"):
        take_seed(cfg)
    with skippable():
        lines = check_config(cfg, check=not args.no_check)
    runner = build_runner(cfg)
    for line in lines:
        runner.logger.warning(line)
    if not args.no_check:
        with skippable():
            lines += check_model(cfg, runner)
    runner.register_hook(StartHook(backbone_start(cfg, runner.model), lines), priority="LOWEST")
    try:
        runner.train()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_resume(cfg.work_dir)) from None


if __name__ == "__main__":
    run(main)
