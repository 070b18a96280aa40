"""Every model of the configs learns and predicts; the larger sizes of one are only put together.

Configs that share their model with another one are compared with it: test_zoo.py.
"""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from config_files import MINI, PEERS, ROOT, ZOO, load, stem
from mmengine.config import Config
from mmengine.registry import MODELS
from one_iteration import train_and_predict

from vig_mm.checks.model import check_channels

OWN = [name for name in ZOO if not re.search(r"_amp-|ms-crop-3x_coco|px_test|-fsdp", name)]
OWN += [name for name in ZOO if re.search(r"cascade", name)]
TINY = [name for name in OWN if re.search(r"vig-(h-)?t[-_]", name)]
LARGER = [name for name in OWN if name not in TINY]
PEERS = [name for name in PEERS if "px_test" not in name]
FIXED = "mmdet/peers/mask-rcnn_vig-h-t_fpn_1x_coco-1024x1024.py"
# what does not decay, besides all that is 1-D
POSITION = ("pos_embed", "position_bias", "rel_pos.mlp", "cpb_mlp", "logit_scale", "cls_token")


def shrink(cfg: Config, name: str) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """The smallest images that a model takes, to train and to test with (None: the same)."""
    if cfg.default_scope == "mmpretrain":
        one_size = re.search("swin|maxvit|gcvit|volo", name)
        return (224, 224) if one_size else (64, 64), None
    size, test_size = (128, 128), None
    if "maxvit" in name:
        size, test_size = (256, 256), (200, 300)
    if "gcvit" in name or "volo" in name or name == FIXED:  # of one size only
        side = 256 if "gcvit" in name else 128
        size, test_size = (side, side), (side - 40, side - 90)
        if "img_size" in cfg.model.backbone:
            cfg.model.backbone.img_size = side
        if cfg.default_scope == "mmseg":  # window by window, or padded to one
            test_size = (side - 40, side + 60)
            cfg.model.data_preprocessor.test_cfg.size = size
            cfg.model.test_cfg.update(crop_size=size, stride=(side // 2, side // 2))
        else:
            cfg.model.data_preprocessor.pad_size_divisor = side
    elif cfg.default_scope == "mmdet" and "peers" not in name:
        cfg.model.data_preprocessor.pad_size_divisor = 32
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = size
    else:  # few proposals, and every prediction kept however low its score
        test = cfg.model.test_cfg
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        test.rpn.max_per_img, test.rcnn.max_per_img, test.rcnn.score_thr = 20, 5, 0.0
    return size, test_size


@cache
def metafile_parameters(folder: Path) -> dict[str, int]:
    entries = yaml.safe_load((folder / "metafile.yml").read_text())["Models"]
    return {entry["Name"]: entry["Metadata"]["Parameters"] for entry in entries}


def check_parameter_count(model: torch.nn.Module, name: str) -> None:
    """As in the metafile; the tool that writes it is tools/analysis_tools/model_table.py."""
    listed = metafile_parameters((ROOT / name).parent)[stem(name)]
    assert sum(parameter.numel() for parameter in model.parameters()) == listed


@pytest.mark.parametrize("name", [*TINY, *MINI, *PEERS], ids=stem)
def test_trains_an_iteration_and_predicts(name, tmp_path):
    cfg = load(name)
    size, test_size = shrink(cfg, name)
    model, wrapper = train_and_predict(cfg, size, tmp_path, test_size, whole="peers" not in name)
    if name in TINY:
        check_parameter_count(model, name)
    groups = wrapper.optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    full = cfg.optim_wrapper.optimizer.weight_decay
    for parameter, value in model.named_parameters():
        exempt = value.ndim == 1 or any(word in parameter for word in POSITION)
        assert decay[id(value)] == (0 if exempt else full), parameter


@pytest.mark.parametrize("name", LARGER, ids=stem)
def test_larger_sizes_fit(name):
    """What the parts are is tested with the tiny size."""
    cfg = load(name)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry, torch.device("meta"):
        model = registry.build(cfg.model)
        check_parameter_count(model, name)
        with torch.no_grad():
            model.backbone.eval()(torch.zeros(1, 3, 64, 64))  # the check is silent where it fails
        check_channels(model, cfg.model)
