"""Export the model of a config to ONNX and check the file with onnxruntime.

A classifier gives `logits` [B, classes], a segmentor `logits` [B, classes, H, W] of the image's
size, and --backbone-only the backbone's maps, `map0`, `map1`, ... Batch, height and width are
dynamic where the model allows that. The input, `image`, is what the config's data preprocessor
hands to the model; its mean, std and channel order and the class names are in the file's metadata.
Of detectors only the backbone can be exported (docs/deploy.md).

Example: python tools/export_onnx.py configs/mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py \\
    model.pth upernet.onnx
"""

# ruff: noqa: E402
import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_state_dict
from torch import Tensor, nn

from vig_mm.apis.launch import add_config_options, load_config, run
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.checkpoints.reading import read_checkpoint, weights
from vig_mm.checks.weights import check_weights
from vig_mm.errors import UsageError
from vig_mm.registry import type_name

TOLERANCE = 1e-4
SMALLEST = 64  # pixels: two cells of stride 32, as torch takes a size of 1 for a constant


class Segmentor(nn.Module):
    """Class scores ``[B, classes, H, W]`` of the whole image, as mmseg's mode 'whole'."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        head = self.model.decode_head
        logits = head(self.model.extract_feat(image))
        return F.interpolate(
            logits, image.shape[2:], mode="bilinear", align_corners=head.align_corners
        )


def build_model(cfg: Config, checkpoint: str) -> tuple[nn.Module, dict]:
    """The config's model in eval mode with a checkpoint's weights, or fresh ones, and its meta."""
    init_default_scope(cfg.default_scope)
    model_cfg = cfg.model.copy()
    _drop_pretrained(model_cfg)  # the checkpoint has it all
    model = revert_sync_batchnorm(MODELS.build(model_cfg))
    if checkpoint == "none":
        model.init_weights()
        return model.eval(), {}
    path = prepare_checkpoint(checkpoint, cfg.work_dir)
    check_weights(model, path)
    content = read_checkpoint(path)
    load_state_dict(model, weights(content)[0])
    return model.eval(), content.get("meta", {}).get("dataset_meta") or {}


def _drop_pretrained(cfg: ConfigDict | list) -> None:
    """Take initial weights from files out of a model's config, at any depth."""
    if isinstance(cfg, dict):
        init = cfg.get("init_cfg")
        if isinstance(init, dict) and type_name(init) in ("Pretrained", "PretrainedInit"):
            cfg["init_cfg"] = None
        cfg = list(cfg.values())
    if isinstance(cfg, list | tuple):
        for value in cfg:
            _drop_pretrained(value)


def exportable(model: nn.Module, scope: str, config: str) -> tuple[nn.Module, list[str]]:
    """What is exported of a whole model, and the names of its outputs.

    Raises:
        UsageError: it has parts that ONNX cannot express.
    """
    if scope == "mmpretrain" and hasattr(model, "head"):
        return model, ["logits"]
    if scope == "mmseg":
        from mmseg.models import EncoderDecoder
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead

        head = getattr(model, "decode_head", None)
        if isinstance(model, EncoderDecoder) and isinstance(head, BaseDecodeHead):
            return Segmentor(model), ["logits"]
    reason = (
        "a detector's proposals, RoIAlign and NMS depend on the data and have no ONNX form in mmdet"
        if scope == "mmdet"
        else "its head does not give one map or vector of class scores"
    )
    raise UsageError(
        f"{config}: {type(model).__name__} cannot be exported whole: {reason}; "
        "export its backbone with --backbone-only"
    )


def backbone_of(model: nn.Module, size: tuple[int, int]) -> tuple[nn.Module, list[str]]:
    """The backbone and the names of its outputs."""
    from vig_mm.export.onnx_export import image_channels

    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, image_channels(model.backbone), *size))
    return model.backbone, [f"map{i}" for i in range(len(maps))]


def preprocessing(cfg: Config, meta: dict) -> dict:
    """What the file says about its input and its classes."""
    stated = cfg.model.get("data_preprocessor") or {}
    swapped = stated.get("bgr_to_rgb") or stated.get("to_rgb")  # OpenMMLab reads images as BGR
    metadata = {key: list(stated[key]) for key in ("mean", "std") if stated.get(key) is not None}
    metadata["channels"] = "RGB" if swapped else "BGR"
    if len(metadata.get("mean", "RGB")) != 3:  # in the order of the file that is loaded
        metadata["channels"] = len(metadata["mean"])
    if meta.get("classes"):
        metadata["classes"] = list(meta["classes"])
    return metadata


def add_to_report(path: Path, entry: dict) -> None:
    """Put an export into a JSON file of exports, in place of the same one's earlier entry."""
    exports = json.loads(path.read_text())["exports"] if path.is_file() else []

    def key(export: dict) -> tuple[str, str]:
        return export["config"], export["part"]

    exports = [export for export in exports if key(export) != key(entry)] + [entry]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(one) for one in sorted(exports, key=key))
    path.write_text(f'{{\n "exports": [\n  {lines}\n ]\n}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="mm or public checkpoint, or none for fresh weights")
    parser.add_argument("out", type=Path, help="file to write, ending in .onnx")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        default=(224, 256),
        help="size in pixels that the model is traced at (default: 224 256)",
    )
    parser.add_argument("--backbone-only", action="store_true", help="without neck and head")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.json",
        help="file of several exports' sizes and differences to add this one to",
    )
    add_config_options(parser)
    args = parser.parse_args()
    if args.out.suffix != ".onnx" or args.out.is_dir():
        raise UsageError(f"OUT must be a file that ends in .onnx, got {str(args.out)!r}")
    if min(args.size) < SMALLEST:
        raise UsageError(f"--size {args.size[0]} {args.size[1]}: at least {SMALLEST} pixels each")
    try:
        from vig_mm.export.onnx_export import ExportError, compare_onnx, export_onnx
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("onnx"):
            raise
        raise UsageError(f"{error.name} is not installed: pip install 'vig-mm[tools]'") from error
    size = tuple(args.size)
    cfg = load_config(args)
    MMLogger.get_current_instance().setLevel("WARNING")  # else fresh weights are listed one by one
    model, meta = build_model(cfg, args.checkpoint)
    if args.backbone_only:
        model, outputs = backbone_of(model, size)
        stated = preprocessing(cfg, {})
    else:
        model, outputs = exportable(model, cfg.default_scope, args.config)
        stated = preprocessing(cfg, meta)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        dynamic = export_onnx(model, args.out, size, outputs, stated)
    except ExportError as error:
        raise UsageError(f"{args.config}: {error}") from error
    seconds = time.perf_counter() - started
    height, width = size
    shapes = [(2, *size)]
    if "height" in dynamic and "width" in dynamic:
        shapes += [(1, height + 61, width - 19), (3, height - 17, width + 32)]
    elif "batch" in dynamic:
        shapes += [(1, *size)]
    print(
        f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MB, outputs {', '.join(outputs)}\n"
        f"dynamic: {', '.join(dynamic) or 'nothing'}"
        + ("" if len(dynamic) == 3 else f"; the rest is fixed as in {shapes[0]}")
    )
    checks = []
    for shape, errors in zip(shapes, compare_onnx(model, args.out, shapes), strict=True):
        listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        print(f"onnxruntime against torch, {shape[0]} x {shape[1]}x{shape[2]}: {listed}")
        checks.append({"shape": shape, "differences": errors})
    if args.report is not None:
        packages = ("torch", "onnxscript", "onnxruntime")
        entry = {
            "config": Path(args.config).as_posix(),
            "part": "backbone" if args.backbone_only else "whole model",
            "weights": "fresh" if args.checkpoint == "none" else Path(args.checkpoint).name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "bytes": args.out.stat().st_size,
            "dynamic": dynamic,
            "export_seconds": round(seconds, 1),
            "checks": checks,
            "versions": {name: version(name) for name in packages},
        }
        add_to_report(args.report, entry)
    wrong = [
        error
        for check in checks
        for error in check["differences"].values()
        if not error <= TOLERANCE  # nor is NaN
    ]
    if wrong:
        sys.exit(
            f"{sys.argv[0]}: error: {args.out} differs from the model by {max(wrong):.1e}, more "
            f"than {TOLERANCE:g}: do not use it"
        )


if __name__ == "__main__":
    run(main)
