"""mmengine's checkpoints load with torch's protection on, nothing else does, and no old torch."""

import os
import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint

from vig_mm.apis.launch import run
from vig_mm.checkpoints.reading import read_checkpoint
from vig_mm.errors import RequirementError
from vig_mm.serialization import allow_mmengine_types, check_torch


class Runs:
    """Pickles as a call, as a malicious checkpoint does."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture(autouse=True)
def fresh_allow_list():
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


@pytest.fixture
def checkpoint(tmp_path):
    log = HistoryBuffer([1.0, 3.0], [1, 1])
    scalars = OrderedDict({"train/loss": log, "train/iter": HistoryBuffer([np.float32(2)], [1])})
    path = tmp_path / "epoch_1.pth"
    content = dict(
        state_dict=OrderedDict(weight=torch.ones(2)),
        message_hub=dict(log_scalars=scalars, runtime_info=dict(best=np.float64(0.5), epoch=1)),
    )
    torch.save(content, path)
    return path


def test_training_log_comes_back(checkpoint):
    with pytest.raises(pickle.UnpicklingError):  # otherwise this module is not needed any more
        torch.load(checkpoint, weights_only=True)
    allow_mmengine_types()
    hub = torch.load(checkpoint, weights_only=True)["message_hub"]
    log = hub["log_scalars"]["train/loss"]
    assert log.mean() == 2.0 and log.statistics("max") == 3.0 and log.current() == 3.0
    log.update(5.0)
    assert log.mean() == 3.0
    assert hub["runtime_info"] == dict(best=0.5, epoch=1)


def test_names_of_the_other_numpy(checkpoint, tmp_path):
    # the same checkpoint as numpy 1 would have written it, or numpy 2 where this is numpy 1
    allow_mmengine_types()
    content = torch.load(checkpoint, weights_only=True)
    other = tmp_path / "other.pth"
    torch.save(content, other, _use_new_zipfile_serialization=False)
    data = other.read_bytes()
    names = [b"numpy._core.multiarray", b"numpy.core.multiarray"]
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        names.reverse()
    assert names[0] in data
    other.write_bytes(data.replace(*names))
    log = torch.load(other, weights_only=True)["message_hub"]["log_scalars"]["train/loss"]
    assert log.mean() == 2.0


def test_twice_is_once():
    allow_mmengine_types()
    once = len(torch.serialization.get_safe_globals())
    allow_mmengine_types()
    assert len(torch.serialization.get_safe_globals()) == once > 0


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "exit 1"),
        (exec, "open('written', 'w').close()"),
        (getattr, HistoryBuffer, "__init__"),
        (getattr, np.ndarray, "tofile"),
    ],
    ids=["system", "exec", "other attribute", "numpy attribute"],
)
def test_anything_else_is_refused(call, tmp_path, monkeypatch):
    """Also by mmengine's own function, which the fork has try again without `weights_only`."""
    monkeypatch.chdir(tmp_path)
    allow_mmengine_types()
    torch.save(dict(state_dict={}, meta=Runs(*call)), "evil.pth")
    for load in (torch.load, partial(load_checkpoint, torch.nn.Linear(1, 1))):
        with pytest.raises(pickle.UnpicklingError):
            load("evil.pth")
    assert not (tmp_path / "written").exists()


def test_tools_and_checkpoints_refuse_torch_before_2_6(monkeypatch, tmp_path):
    requirements = Path(__file__).resolve().parents[1] / "requirements"
    assert "torch>=2.6\n" in (requirements / "core.txt").read_text()
    check_torch()  # this one is taken
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}}, file)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    reason = r"torch 2\.5\.1\+cu124 is too old: .*CVE-2025-32434.*pip install 'torch>=2\.6'"
    with pytest.raises(RequirementError, match=reason):
        read_checkpoint(file)
    started = []
    with pytest.raises(SystemExit, match=reason):
        run(lambda: started.append(1))
    assert not started
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git123")
    check_torch()
