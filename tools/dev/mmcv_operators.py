"""Which of mmcv's operators the stock configs of mmdet, mmseg and mmpretrain reach.

    python tools/dev/mmcv_operators.py            # builds their models: 20 minutes of one core
    python tools/dev/mmcv_operators.py --table    # only writes the table of CONTRIBUTING.md anew

Builds the model of every config on the `meta` device (no memory, no weights); configs that differ
in numbers only count as one model. An operator counts as reached where a class of `mmcv.ops` is
part of the model, or where the file that defines a part imports one of its functions.
"""

import argparse
import inspect
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

import vig_mm.ops  # noqa: F401 (before mmcv.ops)

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs" / "mmcv_operators.json"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- operators:begin -->\n", "<!-- operators:end -->\n"
LIBRARIES = ("mmdet", "mmseg", "mmpretrain")
PYTHON = "mmcv's own Python"
# File of mmcv.ops -> its names that configs and models use, and what serves them without mmcv._ext.
OPERATORS = {
    "nms": (("nms", "batched_nms", "nms_match"), "torchvision; NumPy for `offset=1`, `nms_match`"),
    "soft_nms": (("soft_nms",), "NumPy"),
    "roi_align": (("RoIAlign",), "torchvision, average pooling"),
    "roi_pool": (("RoIPool",), "torch"),
    "deform_conv": (("DeformConv2d", "DeformConv2dPack"), "torchvision"),
    "modulated_deform_conv": (("ModulatedDeformConv2d", "…Pack"), "torchvision"),
    "saconv": (("SAConv2d",), "torchvision"),
    "multi_scale_deform_attn": (("MultiScaleDeformableAttention",), "torch"),
    "deform_roi_pool": (("DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"), "torch"),
    "focal_loss": (("sigmoid_focal_loss", "softmax_focal_loss"), "torch"),
    "carafe": (("CARAFE", "CARAFEPack", "CARAFENaive"), "torch"),
    "masked_conv": (("MaskedConv2d",), "torch"),
    "psa_mask": (("PSAMask",), "torch"),
    "sync_bn": (("SyncBatchNorm",), "torch"),
    "point_sample": (("point_sample", "SimpleRoIAlign"), PYTHON),
    "corner_pool": (("CornerPool",), PYTHON),
    "cc_attention": (("CrissCrossAttention",), PYTHON),
    "merge_cells": (("ConcatCell", "SumCell", "GlobalPoolingCell"), PYTHON),
}


def structure(value: Any) -> Any:
    """A config without its numbers."""
    if isinstance(value, dict):
        return {str(key): structure(item) for key, item in sorted(value.items(), key=str)}
    if isinstance(value, list | tuple):
        return [structure(item) for item in value]
    return value if isinstance(value, str | bool | None) else type(value).__name__


def configs(library: str) -> Iterator[Path]:
    folder = Path(import_module(library).__file__).parent / ".mim" / "configs"
    for path in sorted(folder.rglob("*.py")):
        if "_base_" not in path.parts:
            yield path


def parts(model: torch.nn.Module) -> Iterator[Any]:
    """Its modules, and what they hold besides: samplers, assigners, coders."""
    for module in model.modules():
        yield module
        yield from vars(module).values()


def reached(model: torch.nn.Module, cfg: dict) -> set[str]:
    """Files of `mmcv.ops` whose classes or functions a model's parts are or import."""
    found = set()
    for kind in {kind for part in parts(model) for kind in type(part).__mro__}:
        if kind.__module__.startswith("mmcv.ops."):
            found.add(kind.__module__)
        elif kind.__module__.split(".")[0] in LIBRARIES:
            for value in vars(sys.modules[kind.__module__]).values():
                if not inspect.isclass(value):
                    # `apply` of an autograd function knows its module by its class only
                    owner = getattr(value, "__self__", value)
                    source = getattr(owner, "__module__", None) or ""
                    if source.startswith("mmcv.ops."):
                        found.add(source)
    if "soft_nms" in json.dumps(structure(cfg)):
        found.add("mmcv.ops.soft_nms")
    return found


def build(cfg: Config, library: str) -> torch.nn.Module:
    registry = import_module(f"{library}.registry").MODELS
    if "custom_imports" in cfg:
        import_modules_from_strings(**cfg.custom_imports)
    with DefaultScope.overwrite_default_scope(library):
        try:
            with torch.device("meta"):
                return registry.build(deepcopy(cfg.model))
        except Exception:  # some read a value of a tensor while they are built
            return registry.build(deepcopy(cfg.model))


def survey(library: str) -> dict:
    import_module(f"{library}.utils").register_all_modules(init_default_scope=False)
    seen: dict[str, set[str] | None] = {}
    counts: Counter[str] = Counter()
    failed = []
    total = 0
    for path in configs(library):
        name = path.name
        try:
            cfg = Config.fromfile(path)
            if "model" not in cfg:
                continue
            total += 1
            key = json.dumps(structure(cfg.model.to_dict()))
            if key not in seen:
                seen[key] = None
                seen[key] = reached(build(cfg, library), cfg.model.to_dict())
            counts.update(seen[key] or ())
        except Exception as error:  # an optional package or a download is missing, a bug
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return {
        "configs": total,
        "models": len(seen),
        "operators": dict(sorted(counts.items())),
        "not built": failed,
    }


def table(record: dict) -> str:
    """Markdown, one row for each operator; the numbers are stock configs."""
    reached_by = {library: record[library]["operators"] for library in LIBRARIES}
    unknown = set().union(*reached_by.values()) - {f"mmcv.ops.{name}" for name in OPERATORS}
    if unknown:
        raise SystemExit(f"no row for {', '.join(sorted(unknown))}: add it to OPERATORS")
    lines = [f"| `mmcv.ops` | served by | {' | '.join(LIBRARIES)} |", "|---|---|---|---|---|"]
    for module, (names, source) in OPERATORS.items():
        counts = [str(reached_by[x].get(f"mmcv.ops.{module}", "")) for x in LIBRARIES]
        lines.append(f"| {', '.join(f'`{n}`' for n in names)} | {source} | {' | '.join(counts)} |")
    built = [record[x]["configs"] - len(record[x]["not built"]) for x in LIBRARIES]
    lines.append(f"| of so many configs whose models are built | | {' | '.join(map(str, built))} |")
    return "\n".join(lines) + "\n"


def write_page(record: dict) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + table(record) + END + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only write the table from the JSON")
    parser.add_argument("--library", choices=LIBRARIES, action="append")
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if not args.table:
        warnings.filterwarnings("ignore")
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")  # nothing is downloaded
        for library in args.library or LIBRARIES:
            record[library] = survey(library) | {"version": import_module(library).__version__}
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
    write_page(record)


if __name__ == "__main__":
    main()
