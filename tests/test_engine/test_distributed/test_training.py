"""tools/train.py in two gloo processes: every task, with and without checkpointing and freezing."""

from pathlib import Path

import pytest
import torch
from launches import run_tools
from mmengine.config import Config
from mmengine.registry import MODELS
from tool_runs import small_config

CONFIGS = {
    "mmdet": "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py",
    "mmseg": "mmseg/vig-h-mini_upernet_digits.py",
    "mmpretrain": "mmpretrain/vig-h-mini_digits.py",
}
# Of the two switches each is on and off in every task, and all four pairs of them occur.
SWITCHES = {  # with_cp, frozen_stages
    "mmdet": [(True, 1), (False, -1)],
    "mmseg": [(True, -1), (False, 2)],
    "mmpretrain": [(True, 2), (False, -1)],
}


def config(scope: str, work: Path, with_cp: bool, frozen_stages: int) -> Path:
    """Two iterations of two images a process, written to a folder of its own."""
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
        "work_dir": str(work / f"{scope}_{with_cp}_{frozen_stages}"),
        "find_unused_parameters": False,  # mmengine's default: every parameter has to take part
    }
    folder = Path(changes["work_dir"])
    folder.mkdir()
    return small_config(CONFIGS[scope], folder, changes)


@pytest.mark.parametrize("scope", CONFIGS)
def test_two_processes(scope: str, work: Path) -> None:
    paths = [config(scope, work, *switches) for switches in SWITCHES[scope]]
    log = run_tools(work, *[("train.py", path, "--seed", "0") for path in paths])

    notice = "SyncBN works on GPUs only and is replaced by BN"
    assert log.count(notice) == (2 if scope == "mmseg" else 0)  # a run's first process says it
    for path, (_, frozen_stages) in zip(paths, SWITCHES[scope], strict=True):
        ended = torch.load(path.parent / "iter_2.pth", weights_only=False)
        losses = ended["message_hub"]["log_scalars"]["train/loss"].data[0]
        assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)

        # the optimizer stepped every parameter except the frozen ones, which it does not have
        cfg = Config.fromfile(path)
        with MODELS.switch_scope_and_registry(scope) as registry:
            model = registry.build(cfg.model)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert ended["optimizer"]["state"].keys() == set(range(len(trained)))
        parts = ["patch_embed", *(f"layers.{i}" for i in range(max(frozen_stages, 0)))]
        frozen = tuple(f"backbone.{part}." for part in parts) if frozen_stages >= 0 else ()
        names = [name for name, _ in model.named_parameters()]
        assert trained == [name for name in names if not name.startswith(frozen)]
        assert (len(trained) < len(names)) is (frozen_stages >= 0)
