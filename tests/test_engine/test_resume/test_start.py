"""Which checkpoint `--resume` takes, and what tools/train.py puts into a config."""

import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import IterBasedTrainLoop
from toy import toy

from vig_mm.checkpoints.reading import CheckpointError, read_checkpoint
from vig_mm.engine.loops.resume import (
    check_optimizer_state,
    latest_checkpoint,
    make_resumable,
    take_seed,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work folder with iter_1.pth, ..., iter_5.pth."""
    folder = tmp_path_factory.mktemp("trained")
    toy(folder, length=1, seed=5)
    return folder


@pytest.fixture
def work(trained, tmp_path):
    """A copy of it: `last_checkpoint` names a file in the other folder."""
    shutil.copytree(trained, tmp_path / "work")
    return tmp_path / "work"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


BROKEN = {"empty": b"", "bytes": b"\xff\xfe", "zeros": b"\0" * 20, "x": b"x" * 5000}
POINTERS = {"none": None, "moved": b"/somewhere/else/iter_4.pth\n", **BROKEN}


def test_named(work, trained):
    assert latest_checkpoint(trained) == str(trained / "iter_5.pth")
    assert latest_checkpoint(work) == str(trained / "iter_5.pth")


@pytest.mark.parametrize("what", POINTERS)
def test_pointer(what, work, log):
    (work / "last_checkpoint").unlink()
    if what != "none":
        (work / "last_checkpoint").write_bytes(POINTERS[what])
    expected = "iter_4.pth" if what == "moved" else "iter_5.pth"
    assert latest_checkpoint(work) == str(work / expected)
    said = "is not a file" in log.text and "going on from" in log.text
    assert said is (what in BROKEN)


def zeros(path):
    """As after a power cut: of the right length, but not what was written."""
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm", [truncate, zeros, lambda path: path.unlink(), lambda path: path.write_bytes(b"")]
)
def test_next_whole_one(harm, work, log):
    (work / "last_checkpoint").write_text(str(work / "iter_5.pth"))
    harm(work / "iter_5.pth")
    truncate(work / "iter_4.pth")
    # neither is a checkpoint to go on from
    shutil.copy(work / "iter_1.pth", work / "iter_9.pth.part")
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), work / "best_score_iter_9.pth")
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), work / "other_9.pth")
    assert latest_checkpoint(work) == str(work / "iter_3.pth")
    assert "iter_5.pth' is not a" in log.text and "going on from" in log.text


def test_dangling_link(work):
    """Say, to a disk that is not mounted."""
    (work / "last_checkpoint").write_text(str(work / "iter_5.pth"))
    (work / "iter_9.pth").symlink_to("nowhere.pth")
    assert latest_checkpoint(work) == str(work / "iter_5.pth")


def test_none_is_whole(work, log):
    (work / "last_checkpoint").write_text(str(work / "iter_5.pth"))
    for path in work.glob("*.pth"):
        truncate(path)
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole: .*iter_5.pth"):
        latest_checkpoint(work)
    # none was ever finished
    (work / "last_checkpoint").unlink()
    assert latest_checkpoint(work) is None and "starting from the beginning" in log.text


def test_nothing_yet(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "not there") is None


def test_seed(trained, log):
    start = str(trained / "iter_2.pth")
    cfg = Config(dict(load_from=start))
    take_seed(cfg)
    assert cfg.randomness.seed == 5
    cfg = Config(dict(load_from=start, randomness=dict(seed=7, deterministic=True)))
    take_seed(cfg)
    assert cfg.randomness == dict(seed=5, deterministic=True)
    assert "goes on with its own seed 5, not with 7" in log.text


@pytest.mark.parametrize(
    "changes, lacking",
    [
        (dict(meta=None), "meta.iter, meta.epoch"),
        (dict(meta="iter, epoch"), "meta.iter, meta.epoch"),
        (dict(meta=dict(iter="2", epoch=1)), "meta.iter"),
        (dict(optimizer={}), "optimizer"),
        (dict(meta={}, optimizer=0, message_hub=None), "meta.iter, meta.epoch, opt.*, message_hub"),
    ],
    ids=["no meta", "meta of another kind", "iter of another kind", "optimizer", "weights alone"],
)
def test_what_a_checkpoint_must_hold(changes, lacking, trained, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({**read_checkpoint(trained / "iter_2.pth"), **changes}, path)
    with pytest.raises(CheckpointError, match=f"x.pth': it holds no {lacking}[.] To start"):
        take_seed(Config(dict(load_from=str(path))))


def test_other_parameter_groups(trained, tmp_path):
    start, path = read_checkpoint(trained / "iter_3.pth"), tmp_path / "start.pth"
    groups = start["optimizer"]["param_groups"]
    groups.append({**groups[0], "params": [1, 2]})
    torch.save(start, path)
    with pytest.raises(
        CheckpointError,
        match="start.pth': its optimizer has 2 parameter groups of 3 weights, this run's has 1 of "
        "1.*other parameter groups than .* load_from=FILE, without --resume",
    ):
        toy(tmp_path / "rest", load_from=str(path), length=1)


def params():
    return [torch.nn.Parameter(torch.ones(1))]


def test_another_optimizer():
    state = torch.optim.AdamW(params()).state_dict()
    with pytest.raises(CheckpointError, match="'x.pth': .* another opt.* betas.*SGD has .*mom"):
        check_optimizer_state(torch.optim.SGD(params()), state, "x.pth")
    # newer versions of torch have more options; a schedule leaves one of its own
    for less, more in (("foreach", "initial_lr"), (None, "of_the_future")):
        state = torch.optim.AdamW(params()).state_dict()
        (group,) = state["param_groups"]
        group[more] = 1
        group.pop(less, None)
        check_optimizer_state(torch.optim.AdamW(params()), state, "x.pth")


OURS = ("vig_mm.EpochBasedTrainLoop", "vig_mm.SafeCheckpointHook")


@pytest.mark.parametrize(
    ("train_cfg", "hooks", "expected"),
    [
        (dict(type="EpochBasedTrainLoop"), None, OURS),
        (dict(by_epoch=True), {}, OURS),
        (dict(by_epoch=False), {}, ("vig_mm.IterBasedTrainLoop", OURS[1])),
        (
            dict(type=IterBasedTrainLoop),
            dict(checkpoint=dict(type=CheckpointHook)),
            ("vig_mm.IterBasedTrainLoop", OURS[1]),
        ),
        (dict(type=OURS[0]), dict(checkpoint=dict(type=OURS[1])), OURS),
        (dict(type="mmengine.EpochBasedTrainLoop"), dict(checkpoint=None), (OURS[0], None)),
        (dict(type="Other"), dict(checkpoint=dict(type="Mine")), ("Other", "Mine")),
    ],
    ids=["default", "by epoch", "by iteration", "classes", "ours", "no checkpoints", "others"],
)
def test_config(train_cfg, hooks, expected, log):
    cfg = Config(dict(train_cfg=train_cfg) | ({} if hooks is None else dict(default_hooks=hooks)))
    make_resumable(cfg)
    hook = cfg.default_hooks.checkpoint
    assert (cfg.train_cfg.type, hook and hook.type) == expected
    assert "by_epoch" not in cfg.train_cfg
    said = [f"{where}.type is" in log.text for where in ("train_cfg", "default_hooks.checkpoint")]
    assert said == ([True, True] if expected == ("Other", "Mine") else [False, False])
