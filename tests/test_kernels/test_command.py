"""`python -m vig_mm.kernels`: what runs here, and whether it is right."""

import pytest
import torch
import triton_testing  # noqa: F401 - the kernels run on a GPU, or interpreted

from vig_mm.kernels import __main__ as command
from vig_mm.kernels import readiness
from vig_mm.kernels.norm_conv import triton as norm_conv_kernels


@pytest.fixture
def bfloat16_alone(monkeypatch):
    monkeypatch.setattr(command, "BOUNDS", {torch.bfloat16: command.BOUNDS[torch.bfloat16]})


def test_every_operator_is_right(bfloat16_alone, capsys):
    assert command.main() == 0
    facts, table = capsys.readouterr().out.split("\n\n")
    for name in ("torch ", "triton ", "C compiler ", "Python.h ", "cache folder ", "kernels "):
        assert any(line.startswith(name) for line in facts.splitlines())
    lines = table.splitlines()
    assert [line.split()[0] for line in lines] == list(command.OPERATORS)
    assert all(line.split()[1] == "triton" and line.endswith(" ok") for line in lines)


@pytest.mark.parametrize("factor", [1.1, torch.nan, None], ids=["wrong", "NaN", "fails"])
def test_wrong_results_and_failures(factor, bfloat16_alone, monkeypatch, capsys):
    """The former are exit status 1; where a kernel fails plain PyTorch runs."""
    monkeypatch.setattr(command, "OPERATORS", {"norm_conv": command.OPERATORS["norm_conv"]})
    right = norm_conv_kernels.conv_backward

    def changed(*args):
        if factor is None:
            raise RuntimeError("out of everything")
        dx, sums = right(*args)
        return dx, sums * factor

    monkeypatch.setattr(norm_conv_kernels, "conv_backward", changed)
    assert command.main() == (factor is not None)
    out = capsys.readouterr().out
    if factor is None:
        assert "torch, as the kernel fails: RuntimeError: out of everything" in out
    else:
        assert "WRONG" in out and "wrong results: norm_conv" in out


@pytest.mark.parametrize(
    "capability, obstacle, words",
    [((7, 5), None, "needs 8.0"), ((9, 0), "Triton needs a C compiler", "needs a C compiler")],
)
def test_where_nothing_can_run(capability, obstacle, words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(readiness, "obstacle", lambda: obstacle)
    assert command.main() == 0
    facts, table = capsys.readouterr().out.split("\n\n")
    assert words in facts.splitlines()[-1] and "a GPU" in facts
    backends = dict(line.split() for line in table.splitlines())
    assert backends["norm_conv"] == "torch" and backends["bidirectional_gla"] == "chunked"
