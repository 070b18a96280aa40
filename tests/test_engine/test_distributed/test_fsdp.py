"""FSDP through tools/train.py in two gloo processes: the same training, and checkpoints for all."""

from pathlib import Path

import pytest
import torch
from launches import ROOT, run_tools
from mmengine.config import Config

from vig_mm.engine.distributed import LaunchError, prepare_distributed

CONFIGS = ROOT / "configs/mmpretrain"


def small(base: str, work: Path, name: str) -> Path:
    """The recipe of ViG-B with a small ViG on the digits, and a rule that shows any difference.

    Plain SGD with momentum (Adam's steps hardly depend on a gradient's size), strong decay, and
    gradients that are clipped in each step.
    """
    cfg = Config.fromfile(CONFIGS / base)
    for split, folder in (("train", "train"), ("val", "val"), ("test", "val")):
        loader = cfg[f"{split}_dataloader"]
        loader.update(batch_size=5, num_workers=0, persistent_workers=False)
        loader.dataset = dict(
            type="CustomDataset", data_root=str(work / "data/digits/imagenet"),
            data_prefix=folder, pipeline=loader.dataset.pipeline,
        )  # fmt: skip
    cfg.model.backbone.update(embed_dims=64, depth=2, num_heads=2, drop_path_rate=0.1)
    cfg.model.head.update(in_channels=64, num_classes=10)
    cfg.model.data_preprocessor.num_classes = 10
    cfg.optim_wrapper.optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=0.1)
    cfg.optim_wrapper.clip_grad = dict(max_norm=0.5)
    cfg.param_scheduler = [dict(type="ConstantLR", factor=1.0, by_epoch=False)]
    cfg.train_cfg.max_epochs = 1
    cfg.custom_hooks = []
    path = work / f"{name}.py"
    cfg.dump(path)
    return path


def steps(checkpoint: Path) -> tuple[dict, list[torch.Tensor], int]:
    """Weights, momenta in the order of the parameters, and iterations of a checkpoint."""
    loaded = torch.load(checkpoint, weights_only=False)
    optimizer = loaded["optimizer"]
    order = [key for group in optimizer["param_groups"] for key in group["params"]]
    momenta = [optimizer["state"][key]["momentum_buffer"] for key in order]
    return loaded["state_dict"], momenta, loaded["meta"]["iter"]


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    """Two epochs with DDP, and with FSDP; the second one from the first of either."""
    fsdp = small("vig-b_8xb128-fsdp_in1k.py", work, "fsdp")
    ddp = small("vig-b_8xb128_in1k.py", work, "ddp")
    two = ("--seed", "0", "--cfg-options", "train_cfg.max_epochs=2")
    exchanged = ("--work-dir", "work_dirs/exchanged", "--resume", "work_dirs/ddp/epoch_1.pth")
    commands = [(fsdp, "--seed", "0"), (ddp, *two), (fsdp, "--resume", *two)]
    commands.append((fsdp, *exchanged, *two))
    run_tools(work, *[("train.py", *command) for command in commands])
    return work / "work_dirs"


@pytest.mark.parametrize("name", ["fsdp/epoch_1.pth", "fsdp/epoch_2.pth", "exchanged/epoch_2.pth"])
def test_trains_like_ddp(name: str, trained: Path) -> None:
    weights, momenta, iterations = steps(trained / name)
    expected, expected_momenta, expected_iterations = steps(trained / "ddp" / Path(name).name)
    assert weights.keys() == expected.keys() and iterations == expected_iterations
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    for momentum, wanted in zip(momenta, expected_momenta, strict=True):
        torch.testing.assert_close(momentum, wanted, rtol=1e-4, atol=1e-6)


def test_checkpoint_serves_one_process(trained: Path, work: Path) -> None:
    """As it is, with both configs; FSDP's runs unsharded then."""
    checkpoint = trained / "fsdp/epoch_1.pth"
    going_on = ("--resume", checkpoint, "--work-dir", "alone")
    log = run_tools(
        work,
        ("test.py", work / "fsdp.py", checkpoint),
        ("train.py", work / "ddp.py", *going_on, "--cfg-options", "train_cfg.max_epochs=2"),
        processes=1,
    )
    assert "one process: training or testing without FSDP" in log
    assert log.count("accuracy/top1") == 2
    weights, momenta, iterations = steps(work / "alone/epoch_2.pth")
    assert iterations == 6  # two of two processes, then four alone
    before = steps(checkpoint)[0]
    assert any(not torch.equal(weights[name], before[name]) for name in weights)


def test_averaged_weights_are_refused(monkeypatch) -> None:
    cfg = Config.fromfile(CONFIGS / "vig-b_8xb128-fsdp_in1k.py")
    cfg.launcher, cfg.custom_hooks = "pytorch", [dict(type="EMAHook")]
    for name, value in dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match="custom_hooks has an EMAHook"):
        prepare_distributed(cfg)
