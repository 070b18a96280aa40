"""Test a detector, segmentor or classifier: the config's `default_scope` decides.

Example: python tools/test.py CONFIG CHECKPOINT --show-dir pictures
CHECKPOINT may also be a public ViG file.
"""

# ruff: noqa: E402
import argparse

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

from mmengine.config import Config
from mmengine.evaluator import DumpResults

from vig_mm.apis.launch import add_arguments, build_runner, load_config, run, skippable
from vig_mm.apis.precision import infer_in_bfloat16
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.checks.config import check_folder, check_loop, leaves
from vig_mm.checks.data import prepare_data
from vig_mm.checks.data.guard import guard_loaders
from vig_mm.checks.model import check_channels, check_options
from vig_mm.checks.weights import bare_model, check_weights
from vig_mm.errors import UsageError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file of this config, or a public ViG file")
    parser.add_argument(
        "--tta", action="store_true", help="test-time augmentation: the config's tta_pipeline"
    )
    parser.add_argument(
        "--show-dir", help="write pictures of the predictions beside the ground truth here"
    )
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16")
    parser.add_argument("--out", metavar="FILE.pkl", help="write all predictions here")
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith((".pkl", ".pickle")):
        parser.error(f"--out must end in .pkl or .pickle, not {args.out!r}")
    return args


def use_tta(cfg: Config) -> None:
    """Wrap the model and replace the test pipeline as the config's two `tta_` entries say."""
    absent = [key for key in ("tta_model", "tta_pipeline") if key not in cfg]
    if absent:
        raise UsageError(f"--tta: the config has no {' and no '.join(absent)}")
    cfg.model = dict(cfg.tta_model, module=cfg.model)
    for _, dataset in leaves("test_dataloader.dataset", cfg.test_dataloader.dataset):
        dataset["pipeline"] = cfg.tta_pipeline


def draw_pictures(cfg: Config, folder: str) -> None:
    """Add the hook that draws predictions, for every image."""
    hook = dict(type="vig_mm.PicturesHook", out_dir=folder, scope=cfg.default_scope)
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), hook]


def dump_metric(scope: str, path: str) -> DumpResults:
    """The metric that writes all predictions of a library to a pickle file."""
    if scope == "mmdet":
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=path)
    if scope == "mmseg":
        from vig_mm.engine.seg_results import DumpSegResults

        return DumpSegResults(out_file_path=path)
    return DumpResults(out_file_path=path)


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if args.show_dir is not None:
        check_folder(args.show_dir, "--show-dir")
    cfg.resume = False
    cfg.load_from = prepare_checkpoint(args.checkpoint, cfg.work_dir)
    check_loop(cfg, "test")
    with skippable():
        lines = prepare_data(cfg, ("test",), check=not args.no_check)
        if not args.no_check:
            check_options(cfg)
    model_cfg = cfg.model
    if args.tta:
        use_tta(cfg)
    if args.show_dir is not None:
        draw_pictures(cfg, args.show_dir)
    runner = build_runner(cfg)
    for line in lines:
        runner.logger.warning(line)
    if not args.no_check:
        with skippable():
            guard_loaders(runner)
            check_channels(bare_model(runner.model), model_cfg)
            check_weights(runner.model, cfg.load_from)
    if args.amp:
        infer_in_bfloat16(runner.model)
    if args.out is not None:
        runner.test_evaluator.metrics.append(dump_metric(cfg.default_scope, args.out))
    runner.test()


if __name__ == "__main__":
    run(main)
