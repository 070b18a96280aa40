"""The checks before a run, over every kind of config that mmdet, mmseg and mmpretrain ship.

No data is there and no model is built: what is asked is that no check ends in a traceback, or
refuses what the libraries run. Data that is not there is the one thing that the checks may say.
"""

import importlib.util
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.utils import import_modules_from_strings

from vig_mm.checks.config import check_loop, check_optimizer
from vig_mm.checks.data import DataCheck
from vig_mm.checks.data.data_set import Finding
from vig_mm.checks.model import check_channels, check_options
from vig_mm.checks.recipe import check_recipe
from vig_mm.checks.weights import check_initial_weights
from vig_mm.engine.distributed import _fit_to_cpu, prepare_distributed
from vig_mm.engine.loops.resume import make_resumable
from vig_mm.errors import UsageError

LIBRARIES = ("mmdet", "mmseg", "mmpretrain")
SPLITS = ("train", "val", "test")
ABSENT = ("missing", "not-coco")  # kinds of findings where no data is there

# True findings: what the library itself stops at, with the words of ours.
KNOWN = {
    # FPN has no such option since mmdet 3
    "mmdet/v3det/fcos_swinb_fpn_8x4_sample1e-3_mstrain_v3det_2x.py": "force_grad_on_level",
}


def stock() -> dict[str, list[Path]]:
    """Configs of each library's folders; those of `_base_` are parts.

    Of those whose names differ in numbers alone (depth, schedule, size), the first.
    """
    found, seen = defaultdict(list), set()
    for name in LIBRARIES:
        root = Path(importlib.util.find_spec(name).origin).parent / ".mim/configs"
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            kind = (name, *parts[:-1], re.sub(r"\d+", "", path.stem))
            if "_base_" not in parts and len(parts) > 1 and kind not in seen:
                seen.add(kind)
                found[f"{name}/{parts[0]}"].append(path)
    return found


STOCK = stock()


def read(path: Path) -> Config | None:
    """A whole config; None for a part of one, and for one that the library cannot read."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except (FileNotFoundError, KeyError, RuntimeError):  # a _base_ that was never shipped, ...
        return None
    finally:
        sys.argv = argv
    if cfg.get("default_scope") not in LIBRARIES or cfg.get("model") is None:
        return None
    if cfg.get("custom_imports"):
        import_modules_from_strings(**{**cfg.custom_imports, "allow_failed_imports": True})
    cfg.launcher, cfg.work_dir = "none", "work_dirs/stock"
    return cfg


def pruned(part: Any, drop: Callable[[str, Any], bool]) -> Any:
    """A model's config without the entries of which ``drop(key, value)`` holds."""
    if isinstance(part, dict):
        return {key: pruned(x, drop) for key, x in part.items() if not drop(key, x)}
    if isinstance(part, list | tuple):
        return [pruned(one, drop) for one in part]
    return part


def by_hand(key: str, value: Any) -> bool:
    """Weights that a user puts there."""
    return key == "checkpoint" and "://" not in value


def stored(key: str, value: Any) -> bool:
    """Weights of any kind."""
    return key == "init_cfg" or (key == "pretrained" and isinstance(value, str))


def refuses(one: Finding) -> bool:
    """Whether a finding keeps a run from starting, and is not that no data is there."""
    return one.severity == "error" and one.kind not in ABSENT


def problems(cfg: Config, train) -> list[str]:
    """What the checks of tools/train.py and tools/test.py say."""
    said = []

    def ask(check, *args):
        try:
            check(*args)
        except Exception as error:
            said.append(f"{check.__name__}: {type(error).__name__}: {error}")

    ask(prepare_distributed, cfg)
    for check in (check_optimizer, check_recipe, check_options):
        ask(check, cfg)
    ask(check_initial_weights, pruned(cfg.model, by_hand))
    try:
        found = DataCheck(cfg, SPLITS).findings
        said += [f"{one.kind}: {one.text}" for one in found if refuses(one)]
    except Exception as error:
        said.append(f"DataCheck: {type(error).__name__}: {error}")
    try:
        check_loop(cfg, "train")
    except UsageError:
        pass  # a model that can only be tested, or a part of a config
    else:
        ask(train.set_precision, cfg, None)
    ask(make_resumable, cfg)
    ask(_fit_to_cpu, cfg)
    return said


@pytest.mark.parametrize("family", STOCK)
def test_checks_accept_stock_configs(family, load_tool, tmp_path, monkeypatch):
    train = load_tool("train")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "PYTHONWARNINGS", "ignore")
    wrong = {}
    for path in STOCK[family]:
        cfg = read(path)
        if cfg is None:
            continue
        said = problems(cfg, train)
        name = f"{family}/{path.name}"
        if name in KNOWN:
            assert any(KNOWN[name] in one for one in said), name
        elif said:
            wrong[name] = said
    assert not wrong


# Each way in which maps go from backbone to heads, of those that can be built without memory.
CHANNELS = [
    *("mmdet/retinanet", "mmdet/mask_rcnn", "mmdet/yolox", "mmdet/fcos", "mmdet/deformable_detr"),
    *("mmdet/detr", "mmdet/cornernet", "mmdet/solov2", "mmdet/cascade_rcnn", "mmdet/hrnet"),
    *("mmseg/pspnet", "mmseg/deeplabv3plus", "mmseg/ocrnet", "mmseg/bisenetv1", "mmseg/hrnet"),
    *("mmseg/fastscnn", "mmseg/point_rend", "mmseg/mask2former", "mmpretrain/vgg"),
    *("mmpretrain/mobilenet_v2", "mmpretrain/hrnet", "mmpretrain/vision_transformer"),
]


@pytest.mark.parametrize("family", CHANNELS)
def test_maps_of_stock_models_fit(family):
    cfg = next(cfg for cfg in map(read, STOCK[family]) if cfg is not None)
    cfg.model = pruned(cfg.model, stored)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry, torch.device("meta"):
        check_channels(registry.build(cfg.model), cfg.model)


def test_there_are_stock_configs():
    """Where a package has left its configs out, the test above would have looked at nothing."""
    assert sum(map(len, STOCK.values())) > 1000
