"""tools/train.py and tools/test.py ask for what a command line may hold before they start."""

import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmpretrain")

from tool_runs import ROOT

from vig_mm.errors import UsageError

pytestmark = pytest.mark.usefixtures("default_scope")
CONFIG = ROOT / "configs/mmpretrain/vig-h-mini_digits.py"


@pytest.mark.parametrize("arguments", [("--seed", "-1"), ("--cfg-options", "foo")])
def test_arguments(arguments, run_tool, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run_tool("train", CONFIG, *arguments, cwd=tmp_path)
    assert caught.value.code == 2 and "error: argument --" in capsys.readouterr().err


@pytest.mark.parametrize(
    "tool, arguments, reason",
    [
        ("train", ["config.txt"], "config 'config.txt', or a file in its _base_, cannot be read"),
        ("train", [CONFIG, "--work-dir", "config.txt"], "--work-dir 'config.txt' cannot be used"),
        ("test", [CONFIG, "x", "--show-dir", "config.txt"], "--show-dir 'config.txt' cannot be"),
        ("train", [CONFIG, "--cfg-options", "optim_wrapper.optimizer.type=Adamw"], "'AdamW'"),
        ("train", [CONFIG, "--cfg-options", "model.type.x=1"], "--cfg-options do not fit .*digits"),
        ("train", [CONFIG, "--cfg-options", "train_pipeline.9.x=1"], "--cfg-options do not fit"),
    ],
    ids=["config", "work dir", "show dir", "optimizer", "key of a text", "index"],
)
def test_one_message(tool, arguments, reason, run_tool, tmp_path):
    (tmp_path / "config.txt").touch()
    with pytest.raises(UsageError, match=reason):
        run_tool(tool, *arguments, cwd=tmp_path)
