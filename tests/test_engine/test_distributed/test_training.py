"""tools/train.py in two gloo processes: every task, with and without checkpointing and freezing."""

from pathlib import Path

import pytest
import torch
from known_cases import CONFIGS
from launches import run_tools
from mmengine.config import Config
from mmengine.registry import MODELS
from tool_runs import small_config

SWITCHES = {"mmdet": (True, 1), "mmseg": (False, -1), "mmpretrain": (True, 2)}
"""with_cp, frozen_stages"""


def config(scope: str, work: Path) -> Path:
    """Two iterations of two images a process, written to a folder of its own."""
    with_cp, frozen_stages = SWITCHES[scope]
    changes = {
        "model.backbone.with_cp": with_cp,
        "model.backbone.frozen_stages": frozen_stages,
        "train_dataloader.batch_size": 2,
        "default_hooks.logger.interval": 1,
        "default_hooks.checkpoint.by_epoch": False,
        "default_hooks.checkpoint.interval": 2,
        "train_cfg": dict(_delete_=True, type="IterBasedTrainLoop", max_iters=2, val_interval=2),
        "param_scheduler": [dict(type="ConstantLR", factor=1.0, by_epoch=False)],
        "log_processor.by_epoch": False,
        "work_dir": str(work / f"{scope}_by_two"),
        "find_unused_parameters": False,  # mmengine's default: every parameter has to take part
    }
    folder = Path(changes["work_dir"])
    folder.mkdir()
    return small_config(CONFIGS[scope], folder, changes)


@pytest.fixture(scope="module")
def trained(work: Path) -> dict[str, Path]:
    """The config of each task, in the folder of what came of it."""
    paths = {scope: config(scope, work) for scope in CONFIGS}
    log = run_tools(work, *[("train.py", path, "--seed", "0") for path in paths.values()])
    # mmseg's first process says it
    assert log.count("SyncBN works on GPUs only and is replaced by BN") == 1
    return paths


@pytest.mark.parametrize("scope", CONFIGS)
def test_two_processes(scope: str, trained: dict[str, Path]) -> None:
    path, (_, frozen_stages) = trained[scope], SWITCHES[scope]
    ended = torch.load(path.parent / "iter_2.pth", weights_only=False)
    losses = ended["message_hub"]["log_scalars"]["train/loss"].data[0]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)

    # the optimizer stepped every parameter except the frozen ones, which it does not have
    with MODELS.switch_scope_and_registry(scope) as registry:
        model = registry.build(Config.fromfile(path).model)
    names = [name for name, _ in model.named_parameters()]
    trained_ones = [name for name, p in model.named_parameters() if p.requires_grad]
    assert ended["optimizer"]["state"].keys() == set(range(len(trained_ones)))
    parts = ["patch_embed", *(f"layers.{i}" for i in range(frozen_stages))]
    frozen = tuple(f"backbone.{part}." for part in parts) if frozen_stages >= 0 else ()
    assert trained_ones == [name for name in names if not name.startswith(frozen)]
    assert (len(trained_ones) < len(names)) is (frozen_stages >= 0)
