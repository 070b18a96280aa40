"""The small configs learn from every parameter; what all configs share; how their rates run.

The published configs, their models and recipes: tests/test_configs/test_zoo.py.
"""

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from batches import batch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from vig_mm.checks.config import leaves

ROOT = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("mm*/*.py"))
SMALL = [name for name in CONFIGS if "-mini_" in name]
COCO = "mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py"
ADE = "mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py"
VIG_T = "mmpretrain/vig-t_8xb128_in1k.py"


def load(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def build(cfg: Config):
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.build(cfg.model)


@pytest.mark.parametrize("name", SMALL)
def test_learns_from_every_parameter(name):
    torch.manual_seed(0)
    cfg = load(name)
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = (160, 160)  # padded, as small images are, but quick
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build(cfg)
        model.init_weights()
        model = model.train()
        # Stochastic depth may drop a whole block in a batch of two: here every path shall count.
        for module in model.modules():
            if type(module).__name__ == "DropPath":
                module.eval()
        if cfg.default_scope == "mmseg":
            from mmengine.model import revert_sync_batchnorm

            model = revert_sync_batchnorm(model)
        data = model.data_preprocessor(batch(cfg, (128, 160)), training=True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
    assert torch.isfinite(loss)
    loss.backward()
    # DDP fails on a parameter that takes no part
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", [COCO, ADE])
def test_padding_does_not_blow_up_gradients(name):
    # Batches are padded with exact zeros; layer norms of zero vectors amplify gradients 300-fold
    # each, so a backbone that maps zeros to zeros (no biases at the start) ends in NaN.
    torch.manual_seed(0)
    cfg = load(name)
    cfg.model.backbone.drop_path_rate = 0.0
    backbone = build(cfg).backbone
    backbone.init_weights()
    padded = torch.zeros(1, 3, 256, 256, requires_grad=True)
    with torch.no_grad():
        padded[..., :128, :128].normal_()
    torch.cat([out.flatten() for out in backbone(padded)]).square().sum().backward()
    assert padded.grad.abs().max() < 1e4


@pytest.mark.parametrize("name", CONFIGS)
def test_pipelines_build_and_tta_is_there(name):
    cfg = load(name)
    assert cfg.tta_model.type in ("vig_mm.InstanceTTAModel", "SegTTAModel") or (
        cfg.tta_model.type == "mmpretrain.AverageClsScoreTTA"
    )
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
        datasets = [d for loader in loaders for _, d in leaves("dataset", loader.dataset)]
        for pipeline in (*(dataset.pipeline for dataset in datasets), cfg.tta_pipeline):
            assert len(Compose(pipeline).transforms) == len(pipeline)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_flat_decays(name):
    cfg = load(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build(cfg)
        wrapper = dict(cfg.optim_wrapper, type="OptimWrapper")  # the AMP one needs a GPU
        wrapper.pop("loss_scale", None)
        wrapper.pop("dtype", None)
        optimizer = build_optim_wrapper(model, wrapper).optimizer
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    full = cfg.optim_wrapper.optimizer.weight_decay
    for parameter, value in model.named_parameters():
        exempt = value.ndim == 1 or "pos_embed" in parameter
        assert decay[id(value)] == (0 if exempt else full), parameter


@pytest.mark.parametrize("name", [COCO, ADE])
def test_pretrained_weights_by_cfg_options(name, tmp_path):
    cfg = load(name)
    checkpoint = tmp_path / "vig_h_t.pth"
    backbone = build(cfg).backbone
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(0.125)
    torch.save(dict(state_dict=backbone.state_dict()), checkpoint)
    cfg.merge_from_dict(
        {
            "model.backbone.init_cfg.type": "Pretrained",
            "model.backbone.init_cfg.checkpoint": str(checkpoint),
        }
    )
    model = build(cfg)
    model.init_weights()
    assert all((p == 0.125).all() for p in model.backbone.parameters())


def learning_rates(cfg: Config, epoch_length: int, iterations: int) -> list[float]:
    """The rate of every iteration, as mmengine's hook would set it."""
    from mmengine.optim import OptimWrapper
    from mmengine.registry import PARAM_SCHEDULERS

    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = []
    for scheduler in cfg.param_scheduler:
        kind = PARAM_SCHEDULERS.get(scheduler.type)
        options = {k: v for k, v in scheduler.items() if k != "type"}
        options["optimizer"] = OptimWrapper(optimizer)
        if options.pop("convert_to_iter_based", False):
            schedulers.append(kind.build_iter_from_epoch(**options, epoch_length=epoch_length))
        else:
            schedulers.append(kind(**options))
    rates = []
    for iteration in range(1, iterations + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                scheduler.step()
    return rates


def test_learning_rates():
    coco = learning_rates(load(COCO), 7330, 12 * 7330)
    marks = [coco[i] for i in (0, 999, 1000, 8 * 7330 - 1, 8 * 7330, 11 * 7330)]
    assert marks == pytest.approx([1e-7, 1e-4, 1e-4, 1e-4, 1e-5, 1e-6], rel=2e-3)
    ade = learning_rates(load(ADE), 1, 160000)
    marks = [ade[i] for i in (0, 1500, 80750, 159999)]
    assert marks == pytest.approx([6e-11, 6e-5, 3e-5, 0], rel=2e-3, abs=1e-9)
    vig = learning_rates(load(VIG_T), 50, 300 * 50)
    marks = [vig[i] for i in (0, 20 * 50, 160 * 50, 300 * 50 - 1)]
    assert marks == pytest.approx([1e-6, 2e-3, 1.005e-3, 1e-5], rel=2e-3)
