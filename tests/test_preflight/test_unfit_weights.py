"""`check_weights`: a checkpoint whose names and shapes fit, and whose numbers do not."""

import pytest
import torch
from torch import nn

from vig_mm.checkpoints.reading import CheckpointError
from vig_mm.preflight.weights import check_weights


@pytest.fixture
def model():
    """A norm, whose counter is an integer, and tied weights, of which torch lists one name."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("partly", [False, True], ids=["test or resume", "fine-tune"])
@pytest.mark.parametrize("name", ["0.weight", "1.bias", "2.weight"])
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda x: x / 0, "NaN or infinity: {}"),
        (lambda x: x.to(torch.int8), r"{} \(torch.int8\)"),
        (lambda x: x.to("meta"), r"{} \(meta, no values\)"),
    ],
    ids=["nan", "int8", "meta"],
)
def test_refused(change, reason, name, partly, model, tmp_path):
    state = dict(model.state_dict())
    torch.save(dict(state_dict={**state, name: change(state[name])}), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"x.pth' cannot be used: .*{reason.format(name)}"):
        check_weights(model, str(tmp_path / "x.pth"), partly)


def test_taken(model, tmp_path):
    """Half precision, infinities in a buffer; when fine-tuning, broken weights of no use."""
    path, state = str(tmp_path / "x.pth"), dict(model.half().state_dict())
    state["1.running_var"] = state["1.running_var"] / 0
    torch.save(dict(state_dict=state), path)
    check_weights(model.float(), path)
    state["0.bias"] = torch.full((7,), float("nan"))
    torch.save(dict(state_dict=state), path)
    check_weights(model, path, partly=True)


def test_message_names_the_file(model, tmp_path):
    torch.save(dict(net=model.state_dict()), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="x.pth': no weights .*'net'"):
        check_weights(model, str(tmp_path / "x.pth"))
