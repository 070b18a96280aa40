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


@pytest.fixture
def norm_conv_alone(monkeypatch):
    monkeypatch.setattr(command, "OPERATORS", {"norm_conv": command.OPERATORS["norm_conv"]})


def test_every_operator_is_right(bfloat16_alone, capsys):
    assert command.main() == 0
    facts, table = capsys.readouterr().out.split("\n\n")
    for name in ("torch ", "triton ", "C compiler ", "Python.h ", "cache folder ", "kernels "):
        assert any(line.startswith(name) for line in facts.splitlines())
    lines = table.splitlines()
    assert [line.split()[0] for line in lines] == list(command.OPERATORS)
    assert all(line.split()[1] == "triton" and line.endswith(" ok") for line in lines)


@pytest.mark.parametrize("factor", [1.1, torch.nan])
def test_a_wrong_result_is_exit_status_1(factor, norm_conv_alone, monkeypatch, capsys):
    right = norm_conv_kernels.conv_backward

    def wrong(*args):
        dx, sums = right(*args)
        return dx, sums * factor

    monkeypatch.setattr(norm_conv_kernels, "conv_backward", wrong)
    assert command.main() == 1
    out = capsys.readouterr().out
    assert out.count("WRONG") == 3 and "wrong results: norm_conv" in out


def test_a_kernel_that_fails_is_named(norm_conv_alone, bfloat16_alone, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("out of everything")

    monkeypatch.setattr(norm_conv_kernels, "conv_backward", fail)
    assert command.main() == 0  # it runs, in plain PyTorch
    line = capsys.readouterr().out.splitlines()[-1]
    assert "torch, as the kernel fails: RuntimeError: out of everything" in line


def test_where_nothing_can_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    for capability, reason, words in (
        ((7, 5), None, "needs 8.0"),
        ((9, 0), "Triton needs a C compiler", "Triton needs a C compiler"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda value=capability: value)
        monkeypatch.setattr(readiness, "obstacle", lambda value=reason: value)
        assert command.main() == 0
        facts, table = capsys.readouterr().out.split("\n\n")
        assert words in facts.splitlines()[-1] and "a GPU" in facts
        backends = dict(line.split() for line in table.splitlines())
        assert backends["norm_conv"] == "torch" and backends["bidirectional_gla"] == "chunked"
