"""A training that was killed and resumed is, bit for bit, one that was never interrupted."""

import random
import time

import pytest
import torch
from known_cases import CONFIGS
from tool_runs import small_config
from trainings import Training, curve, last, lines, train_py, training_state

COMMON = {
    "model.backbone.drop_path_rate": 0.3,  # random numbers in the training process
    "default_hooks.logger.interval": 1,
    "log_processor.window_size": 1,
    "train_cfg.val_begin": 1000,
}
ITERATIONS = 8
# what each task has besides
TASKS = {
    "mmdet": {
        "train_dataloader.num_workers": 2,
        "train_dataloader.persistent_workers": True,
        "train_cfg.max_epochs": 2,
        "default_hooks.checkpoint.max_keep_ckpts": 1,
    },
    "mmseg": {
        "train_dataloader.num_workers": 1,
        "train_dataloader.persistent_workers": False,
        "train_cfg.max_iters": ITERATIONS,
        "default_hooks.checkpoint.interval": 3,
    },
    "mmpretrain": {
        "train_dataloader.batch_size": 5,
        "train_cfg.max_epochs": 2,
        "train_cfg.val_begin": 1,
        "train_cfg.val_interval": 1,
        # within epochs, which have four iterations
        "default_hooks.checkpoint": dict(
            type="CheckpointHook", by_epoch=False, interval=3, save_best="accuracy/top1"
        ),
        "custom_hooks": [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.01)],
        "model.train_cfg": dict(augments=[dict(type="Mixup", alpha=0.8)], probs=[1.0]),
    },
}


def same(a, b) -> bool:
    """Whether two nests of numbers and tensors are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("scope", TASKS)
def test_killed_and_resumed(scope, work):
    config = small_config(CONFIGS[scope], work, {**COMMON, **TASKS[scope]})
    whole, killed = work / f"{scope}_whole", work / f"{scope}_killed"

    # without a seed one is drawn, and stands in the checkpoint
    seed = [] if scope == "mmpretrain" else ["--seed", "3"]
    Training(work, train_py, config, "--work-dir", whole, *seed).wait()
    expected = curve(whole)
    assert list(expected) == list(range(1, ITERATIONS + 1))
    drawn = last(whole)["meta"]["seed"]

    training = Training(work, train_py, config, "--work-dir", killed, "--seed", drawn)
    moment = random.randrange(5, ITERATIONS - 1)
    training.wait_until(lambda: lines(killed) >= moment)
    time.sleep(random.random() / 5)
    training.kill()
    reached = curve(killed)
    print(f"killed after iteration {max(reached)}")
    assert moment <= max(reached) < ITERATIONS
    assert reached == {step: expected[step] for step in reached}  # the same seed, the same curve

    output = Training(work, train_py, config, "--work-dir", killed, "--resume").wait()
    assert curve(killed) == expected
    assert same(training_state(last(killed)), training_state(last(whole)))
    assert f"with seed {drawn}" in output
    assert "restored: weights, " + ("averaged" if scope == "mmpretrain" else "optimizer") in output
