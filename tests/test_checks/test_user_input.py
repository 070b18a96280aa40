"""Command lines and config files that cannot be used: one message each."""

import argparse

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIMIZERS

from vig_mm.apis.launch import run, skippable
from vig_mm.checks.config import (
    ConfigOptions,
    UsageError,
    check_folder,
    check_loop,
    check_optimizer,
    read_config,
    seed,
)
from vig_mm.engine.loops.resume import make_resumable
from vig_mm.errors import DataError, ModelError


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=ConfigOptions)
    parser.add_argument("--seed", type=seed)
    return parser


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--cfg-options", "a=1", "foo"], "--cfg-options: 'foo' is not of the form KEY=VALUE"),
        (["--cfg-options", "=1"], "'=1' is not of the form KEY=VALUE"),
        (["--cfg-options", "a=[1,(2],3)"], "brackets in 'a=[1,(2],3)' do not match"),
        (["--cfg-options", "a=[(1,2]"], "brackets in 'a=[(1,2]' do not match"),
        (["--seed", "-1"], "--seed: '-1' is not a whole number from 0 to 2147483647"),
        (["--seed", "1.5"], "'1.5' is not a whole number"),
        (["--seed", "2147483648"], "'2147483648' is not a whole number"),
    ],
)
def test_arguments(arguments, reason, parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].partition(reason)[1]


def test_values(parser):
    arguments = ["--cfg-options", "a.b=[1,(2,x)]", "c==", "--cfg-options", "d=", "--seed", "007"]
    args = parser.parse_args(arguments)
    assert args.cfg_options == {"a.b": [1, (2, "x")], "c": "=", "d": ""}
    assert args.seed == 7


UNREADABLE = {
    "README.md": ("# text", "Only py/yml/yaml/json"),
    "open.py": ("a = 1\nb = (", "no valid Python: '\\(' was never closed, line 2: 'b = \\('"),
    "heir.py": ("_base_ = 'broken.py'", "no valid Python: .*, line 1: 'x = \\)'"),
    "orphan.py": ("_base_ = 'nowhere.py'", "nowhere.py"),
    "stranger.py": ("_base_ = 'nopackage::x.py'", "external package"),
    "variable.py": ("_base_ = []\nx = {{_base_.y}}", "KeyError: 'y'"),
    "list.json": ("[1]", "'list'"),
    "open.yaml": ("a: [1", "flow sequence"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_config_that_cannot_be_read(name, tmp_path):
    content, reason = UNREADABLE[name]
    (tmp_path / name).write_text(content)
    (tmp_path / "broken.py").write_text("x = )")
    with pytest.raises(UsageError, match=f"config '.*{name}', or .*_base_, .*{reason}") as caught:
        read_config(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_no_config(tmp_path):
    for path in ("nowhere.py", "x" * 5000, str(tmp_path)):
        with pytest.raises(UsageError, match="is not a file"):
            read_config(path)


def test_code_of_a_config_keeps_its_traceback(tmp_path):
    (tmp_path / "base.py").write_text("a = 1\nb = int('one')\n")
    (tmp_path / "config.py").write_text("_base_ = 'base.py'\n")
    with pytest.raises(ValueError, match="invalid literal") as caught:
        read_config(str(tmp_path / "config.py"))
    assert not isinstance(caught.value, UsageError)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (tmp_path / "base.py", 2)


def test_folder(tmp_path):
    (tmp_path / "file").touch()
    check_folder(str(tmp_path / "new/folder"), "--out-dir")
    (tmp_path / "link").symlink_to("nowhere")
    for path, part in (("file", "file"), ("file/below", "file"), ("link", "link")):
        with pytest.raises(UsageError, match=f"^--out-dir .* used: '.*/{part}' is no folder"):
            check_folder(str(tmp_path / path), "--out-dir")


def optimizer(kind):
    wrapper = dict(type="OptimWrapper", optimizer=dict(type=kind, lr=1.0))
    return Config(dict(default_scope="mmengine", optim_wrapper=wrapper))


def test_optimizer():
    for kind in ("AdamW", "torch.optim.AdamW", OPTIMIZERS.get("SGD")):
        check_optimizer(optimizer(kind))
    with pytest.raises(UsageError, match="no optimizer 'Adamw', did you mean 'AdamW'"):
        check_optimizer(optimizer("Adamw"))
    with pytest.raises(UsageError, match="no optimizer 'Qqqq'; correct it or import its module"):
        check_optimizer(optimizer("Qqqq"))


def test_optimizers_of_parts():
    """mmengine's OptimWrapperDict has one for each part of a model; a config may have none."""
    parts = dict(constructor="X", gen=dict(optimizer=dict(type="AdamW")), dis=dict(optimizer=None))
    check_optimizer(Config(dict(default_scope="mmengine", optim_wrapper=parts)))
    check_optimizer(Config(dict(optim_wrapper=None)))
    check_optimizer(Config())
    parts["dis"] = dict(optimizer=dict(type="Adamw"))
    with pytest.raises(UsageError, match="did you mean 'AdamW'"):
        check_optimizer(Config(dict(default_scope="mmengine", optim_wrapper=parts)))


TEST = dict(test_dataloader=dict(), test_cfg=dict(), test_evaluator=dict())


def test_config_without_a_training_loop():
    """Stock configs of zero-shot models, and of trackers, can only be tested."""
    for train_cfg in ({}, dict(train_cfg=None, optim_wrapper=None, train_dataloader=None)):
        cfg = Config({**TEST, **train_cfg})
        make_resumable(cfg)
        check_loop(cfg, "test")
        with pytest.raises(UsageError, match="train_cfg and no optim_wrapper.*test with it"):
            check_loop(cfg, "train")


def test_training_loop_of_no_kind():
    cfg = Config(dict(train_dataloader={}, train_cfg=dict(max_epochs=1), optim_wrapper={}))
    make_resumable(cfg)
    with pytest.raises(UsageError, match="set train_cfg.by_epoch=True"):
        check_loop(cfg, "train")
    cfg.train_cfg.by_epoch = True
    check_loop(cfg, "train")


def test_every_refusal_names_the_way_past_it():
    for kind in (UsageError, DataError, ModelError):
        with pytest.raises(kind, match="what is wrong\n.*--no-check"), skippable():
            raise kind("what is wrong")


def test_unknown_type_is_one_message():
    with pytest.raises(SystemExit, match="error: a type in the config is unknown: NoSuchNet"):
        run(lambda: MODELS.build(dict(type="NoSuchNet")))


def test_other_errors_keep_their_traceback():
    for error in (KeyError("x"), KeyError(0), KeyError(), ValueError("x"), OSError("x")):
        with pytest.raises(type(error)) as caught:
            run(_raising(error))
        assert caught.value is error


def _raising(error):
    def main():
        raise error

    return main
