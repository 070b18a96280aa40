"""The optimizer's state in a checkpoint fits the run that resumes it, or a message says why not."""

import pytest
import torch
from toy import toy

from vig_mm.checkpoints.reading import CheckpointError, read_checkpoint
from vig_mm.engine.loops.resume import check_optimizer_state


def test_other_groups_are_one_message(tmp_path):
    toy(tmp_path / "whole", length=1)
    start, path = read_checkpoint(tmp_path / "whole/iter_3.pth"), tmp_path / "start.pth"
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


def test_another_version_of_torch():
    """Newer ones have more options; a schedule leaves one of its own."""
    for less, more in (("foreach", "initial_lr"), (None, "of_the_future")):
        state = torch.optim.AdamW(params()).state_dict()
        (group,) = state["param_groups"]
        group[more] = 1
        group.pop(less, None)
        check_optimizer_state(torch.optim.AdamW(params()), state, "x.pth")
