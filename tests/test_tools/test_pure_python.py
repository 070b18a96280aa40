"""Every tool on configs as mmengine's pure-Python style has them, for each library.

Classes for types, imported lazily; no `default_scope`, no hooks and no visualizer.
"""

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

import mmengine.registry
from known_cases import CLASSES, CONFIGS, ROOT
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry

from vig_mm.checks.config import read_config
from vig_mm.registry import type_name

pytestmark = pytest.mark.usefixtures("default_scope")
DROPPED = ("default_scope", "default_hooks", "custom_hooks", "visualizer", "vis_backends")
DROPPED += ("custom_imports", "log_processor", "env_cfg", "tta_model", "tta_pipeline")
BY_NAME = ("norm_cfg", "upsample_cfg", "init_cfg", "nms")  # what mmcv compares with texts
REGISTRIES = [x for x in vars(mmengine.registry).values() if isinstance(x, Registry)]


def write(scope: str, known: Config, path: Path) -> None:
    """The small ViG of a library on the data of a known case, in this style."""
    cfg, imports = known.copy(), set()
    cfg.model = Config.fromfile(ROOT / "configs" / CONFIGS[scope]).model
    few = dict(num_classes=len(CLASSES) + (scope == "mmseg"))
    for key in ("decode_head", "auxiliary_head", "head", "data_preprocessor"):
        if "num_classes" in cfg.model.get(key, {}):
            cfg.model[key].update(few)
    if scope == "mmdet":
        cfg.model.roi_head.bbox_head.update(few)
        cfg.model.roi_head.mask_head.update(few)
        cfg.model.test_cfg.rcnn.max_per_img = 5
    loop = dict(max_iters=2) if scope == "mmseg" else dict(max_epochs=1)
    cfg.train_cfg.update(loop)
    cfg.optim_wrapper.type, cfg.param_scheduler = "AmpOptimWrapper", []
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.update(batch_size=2, sampler=dict(type="DefaultSampler", shuffle=False))
    cfg.model.backbone.depths = (1, 1, 1, 1)

    def code(value, key: str = "") -> str:
        if isinstance(value, dict) and key not in BY_NAME:
            return f"{{{', '.join(f'{k!r}: {code(x, k)}' for k, x in value.items())}}}"
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}([{', '.join(map(code, value))}])"
        for registry in REGISTRIES if key == "type" else ():
            if found := registry.get(f"{scope}.{value}") or registry.get(value):
                imports.add(f"from {found.__module__} import {found.__name__}")
                return found.__name__
        return repr(value)

    entries = (f"{key} = {code(x, key)}" for key, x in cfg.to_dict().items() if key not in DROPPED)
    body = "\n".join(entries)
    path.write_text("\n".join([*sorted(imports), body]) + "\n")


@pytest.mark.parametrize("scope", CONFIGS)
def test_every_tool(scope, known, run_tool, tmp_path, capsys):
    config = tmp_path / f"{scope}.py"
    write(scope, Config.fromfile(known[scope].config), config)
    cfg = read_config(str(config))
    assert cfg.default_scope == scope and not isinstance(cfg.model.type, str)
    assert type_name(cfg.model) == cfg.model.type.__name__ and "visualizer" not in cfg

    def call(tool, *args):
        DefaultScope._instance_dict.clear()
        return run_tool(tool, *args, cwd=tmp_path)

    call("train", config, "--amp", "bf16", "--auto-scale-lr")
    checkpoint = (tmp_path / "work_dirs" / scope / "last_checkpoint").read_text()
    assert "optimizer" in torch.load(checkpoint, weights_only=False)
    count = 6 if scope == "mmpretrain" else 2

    def drawn(folder):
        return len(list((tmp_path / folder).rglob("*.jpg")))

    call("test", config, checkpoint, "--show-dir", "shown", "--out", "out.pkl")
    assert drawn("shown") == count and os.path.getsize(tmp_path / "out.pkl")
    call("visualize", config, checkpoint, "--dataset", "--out-dir", "seen", "--device", "cpu")
    call("visualize", known[scope].data, config, checkpoint, "--out-dir", "files")
    call("browse_dataset", config, "--out-dir", "fed")
    assert drawn("seen") == drawn("fed") == count and drawn("files") >= count
    assert "0 errors" in call("data/check_dataset", config, "--workers", "1")
    call("publish_model", checkpoint, "published.pth")
    (published,) = tmp_path.glob("published-*.pth")
    call("test", config, published, "--work-dir", "published")
    part = ("--backbone-only",) if scope == "mmdet" else ()
    assert "onnxruntime" in call(
        "export_onnx", config, checkpoint, "m.onnx", "--size", 64, 64, *part
    )
    assert "FLOPs" in call("analysis_tools/get_flops", config)
    plan = ("--gpus", 1, "--images", 4, "--size", 64, 64, "--threads", 1)
    assert scope in call("analysis_tools/plan_training", config, *plan)
    call("analysis_tools/get_flops", config, "--traffic")
