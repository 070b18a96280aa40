"""Whatever reads a checkpoint: a file that would write another one when it is loaded never does."""

import builtins
import pickle
from itertools import cycle
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from known_cases import CONFIGS, ROOT
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

import vig_mm
from vig_mm.apis.launch import UNPROTECTED, run
from vig_mm.checkpoints.publishing import clean_config, publish
from vig_mm.checkpoints.reading import CheckpointError, read_checkpoint
from vig_mm.checks.weights import check_initial_weights
from vig_mm.datasets import make_digits

pytestmark = pytest.mark.usefixtures("default_scope")
CONFIG = ROOT / "configs/mmpretrain/vig-h-mini_digits.py"
WRITES = "open({!r}, 'w').close()"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.code = WRITES.format(str(target))

    def __reduce__(self):
        return builtins.exec, (self.code,)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working directory with a picture and data/digits in it."""
    folder = tmp_path_factory.mktemp("untrusted")
    make_digits(folder / "data/digits", coco=(0, 0), ade=(0, 0), imagenet=(1, 1))
    Image.new("RGB", (64, 64)).save(folder / "picture.png")
    return folder


KINDS = ("in the weights", "in the averaged weights", "before torch 1.6", "bare")


@pytest.fixture
def evil(request, work):
    """A file with a payload, of the first kind or of another; the test fails if it is run."""
    written, path, kind = work / "written", work / "evil.pth", getattr(request, "param", KINDS[0])
    content = dict(state_dict={"backbone.norm3.weight": torch.ones(256)})
    bad = content.setdefault("ema_state_dict", {}) if "averaged" in kind else content["state_dict"]
    bad["x"] = Payload(written)
    if kind == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "before torch 1.6")
    yield path
    assert not written.exists()


# name, arguments with EVIL for the file
TOOLS = {
    "test": ("test", CONFIG, "EVIL", "--work-dir", "out"),
    "train, load_from": ("train", CONFIG, "--cfg-options", "load_from=EVIL"),
    "train, resume": ("train", CONFIG, "--resume", "EVIL"),
    "train, latest": ("train", CONFIG, "--work-dir", "latest", "--resume"),
    "train, our backbone": (
        *("train", CONFIG, "--cfg-options", "model.backbone.init_cfg.type=Pretrained"),
        "model.backbone.init_cfg.checkpoint=EVIL",
    ),
    "visualize": ("visualize", "picture.png", CONFIG, "EVIL"),
    "vis_cam": ("analysis_tools/vis_cam", "picture.png", CONFIG, "EVIL"),
    "vis_receptive_field": ("analysis_tools/vis_receptive_field", CONFIG, "EVIL"),
    "vis_gates": ("analysis_tools/vis_gates", "picture.png", CONFIG, "EVIL"),
    "export_onnx": ("export_onnx", CONFIG, "EVIL", "out.onnx"),
    "publish_model": ("publish_model", "EVIL", "out.pth"),
    "convert_checkpoint": ("convert_checkpoint", "EVIL", "out.pth"),
}


@pytest.mark.parametrize(
    "name, evil", list(zip(TOOLS, cycle(KINDS), strict=False)), indirect=["evil"]
)
def test_tools(name, evil, work, run_tool, monkeypatch):
    monkeypatch.setenv(UNPROTECTED, "1")  # it must not help
    (work / "latest").mkdir(exist_ok=True)
    (work / "latest/last_checkpoint").write_text(str(evil))
    tool, *arguments = (
        str(x).replace("EVIL", str(evil)) if x != CONFIG else x for x in TOOLS[name]
    )
    with pytest.raises(CheckpointError, match="evil.pth.* (loaded safely|torch checkpoint)"):
        run_tool(tool, *arguments, cwd=work)


@pytest.mark.parametrize("evil", KINDS, indirect=True)
def test_backbones(evil):
    """A stock one's weights are mmengine's to read: refused there, and by train.py before."""
    init = dict(type="Pretrained", checkpoint=str(evil))
    with pytest.raises(CheckpointError, match="evil.pth"):
        vig_mm.ViG(depth=1, init_cfg=init).init_weights()
    backbone = dict(type="mmpretrain.ResNet", depth=18, init_cfg=dict(init, prefix="backbone"))
    with pytest.raises(pickle.UnpicklingError):
        MODELS.build(backbone).init_weights()
    with pytest.raises(CheckpointError, match="evil.pth"):
        check_initial_weights(dict(type="ImageClassifier", backbone=backbone))


@pytest.mark.parametrize("scope", CONFIGS)
def test_inferencers_of_the_libraries(scope, evil):
    cfg = Config.fromfile(ROOT / "configs" / CONFIGS[scope])
    if scope == "mmdet":
        from mmdet.apis import DetInferencer as Inferencer
    elif scope == "mmseg":
        from mmseg.apis import MMSegInferencer as Inferencer
    else:
        from mmpretrain import ImageClassificationInferencer as Inferencer
    with pytest.raises(pickle.UnpicklingError):
        Inferencer(cfg, str(evil), device="cpu")


def test_the_variable_that_turns_protection_off_is_ignored(work, monkeypatch, capsys):
    """Also where mmengine reads; said once. Without this, the payload does run."""
    written, path = work / "by variable", work / "variable.pth"
    torch.save(dict(state_dict=dict(x=Payload(written))), path)
    monkeypatch.setenv(UNPROTECTED, "1")
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not written.exists()

    with pytest.raises(pickle.UnpicklingError):
        run(lambda: torch.load(path))
    assert f"{UNPROTECTED} is ignored" in capsys.readouterr().err
    assert not written.exists()

    monkeypatch.setenv(UNPROTECTED, "1")
    with pytest.warns(UserWarning, match=UNPROTECTED):
        torch.load(path)
    assert written.exists()


def test_a_config_in_a_checkpoint_is_not_run(work):
    written = work / "by config"
    for code, reason in (
        (WRITES, "line 1 does not set a value"),
        (f"x = {WRITES}", "malformed node"),
        (f"x = dict(a=[{WRITES}])", "malformed node"),
        ("import os; x = 1", "line 1 does not set a value"),
        ("x = dict(**y)", "malformed node"),
        ("x = (", "never closed"),
    ):
        meta = dict(cfg=code.format(str(written)), dataset_meta=dict(classes=["a"]))
        torch.save(dict(state_dict=dict(x=torch.ones(1)), meta=meta), work / "config.pth")
        with pytest.raises(CheckpointError, match=f"it was not run: .*{reason}"):
            publish(work / "config.pth", work / "published.pth")
        assert not written.exists() and not list(work.glob("published*"))


@pytest.mark.parametrize("scope", CONFIGS)
def test_the_config_of_every_library_is_plain(scope):
    """Read without running it, it is the same."""
    cfg = Config.fromfile(ROOT / "configs" / CONFIGS[scope])
    cfg.work_dir, cfg.load_from = "/runs/somebody", None
    text = clean_config(cfg.pretty_text)
    cfg.pop("work_dir")
    cfg.resume = False
    assert Config.fromstring(text, ".py").to_dict() == cfg.to_dict()
