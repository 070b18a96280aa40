"""tools/publish_model.py: what is left in the file, and that all it is meant for loads it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from known_cases import CONFIGS, ROOT
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from vig_mm.apis.inference import Predictor
from vig_mm.checkpoints.publishing import publish
from vig_mm.checkpoints.reading import CheckpointError
from vig_mm.errors import UsageError

pytestmark = pytest.mark.usefixtures("default_scope")


class Line(BaseModel):
    """One weight: 1 after the first step, 2 after the second; averaged by half, 1 and 1.5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples=None, mode="loss"):
        return dict(loss=-self.weight.sum())


class Steps(list):
    metainfo = dict(classes=("up", "down"), sizes=np.array([1.0, 2.0]))


def train(folder: Path, averaged: bool) -> Path:
    config = dict(work_dir="/runs/somebody", load_from="start.pth", resume=True, width=7)
    hook = dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.5)
    Runner(
        Line(),
        work_dir=str(folder),
        train_dataloader=DataLoader(Steps([dict(inputs=torch.zeros(1))] * 2)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1.0)),
        custom_hooks=[hook] if averaged else [],
        cfg=Config(config),
        experiment_name=folder.name,
        log_level="ERROR",
    ).train()
    return folder / "epoch_1.pth"


@pytest.mark.parametrize(("averaged", "weight"), [(False, 2.0), (True, 1.5)])
def test_what_is_published(averaged, weight, run_tool, tmp_path):
    checkpoint = train(tmp_path / f"run{averaged}", averaged)
    assert ("ema_state_dict" in torch.load(checkpoint)) is averaged
    printed = run_tool("publish_model", checkpoint, "out/line.pth", cwd=tmp_path)
    assert ("averaged (EMAHook)" if averaged else "as trained (no EMAHook)") in printed

    (published,) = (tmp_path / "out").iterdir()  # no half-written file either
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert published.name == f"line-{digest[:8]}.pth"
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        content = torch.load(published, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(before)
    assert set(content) == {"meta", "state_dict"}
    assert content["state_dict"] == dict(weight=torch.tensor([weight]))
    meta = content["meta"]
    assert meta["dataset_meta"] == dict(classes=["up", "down"], sizes=[1.0, 2.0])
    assert meta["averaged"] is averaged and meta["epoch"] == 1
    assert "somebody" not in meta["cfg"] and "start.pth" not in meta["cfg"]
    assert "width = 7" in meta["cfg"] and "resume = False" in meta["cfg"]

    run_tool("publish_model", checkpoint, "out/line.pth", cwd=tmp_path)
    assert list((tmp_path / "out").iterdir()) == [published]  # the same again


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Of each library a small ViG-H's checkpoint, published: scope -> (config, before, after)."""
    folder, files = tmp_path_factory.mktemp("published"), {}
    for scope, base in CONFIGS.items():
        cfg = Config.fromfile(ROOT / "configs" / base)
        cfg.work_dir = "/runs/somebody"
        classes = [f"class {i}" for i in range(11 if scope == "mmseg" else 10)]
        meta = dict(classes=classes, palette=[[20 * i, 0, 0] for i in range(len(classes))])
        torch.manual_seed(0)
        with MODELS.switch_scope_and_registry(scope) as registry:
            weights = registry.build(cfg.model).state_dict()
        before, more = folder / f"{scope}.pth", dict(state=torch.zeros(10**6))
        meta = dict(cfg=cfg.pretty_text, dataset_meta=meta)
        torch.save(dict(meta=meta, state_dict=weights, optimizer=more), before)
        after, _ = publish(before, folder / "published" / scope)
        assert after.stat().st_size < before.stat().st_size - 3e6
        files[scope] = (cfg, before, after)
    return files


INFERENCE = """
import json, sys
import torch
from mmengine.config import Config
photo, detector, segmentor, classifier = sys.argv[1:]

# first, as mmdet's and mmseg's set a default scope that mmpretrain's stumbles over
from mmpretrain import ImageClassificationInferencer
config = Config.fromstring(torch.load(classifier, weights_only=True)["meta"]["cfg"], ".py")
one = ImageClassificationInferencer(config, pretrained=classifier, device="cpu")(photo)[0]

from mmdet.apis import DetInferencer
found = DetInferencer(weights=detector, device="cpu")(photo)["predictions"][0]

from mmseg.apis import MMSegInferencer
segmented = MMSegInferencer(None, weights=segmentor, device="cpu")
out = dict(
    class_scores=one["pred_scores"].tolist(),
    class_name=one["pred_class"],
    scores=found["scores"],
    boxes=found["bboxes"],
    labels=segmented(photo)["predictions"].tolist(),
    third=segmented.model.dataset_meta["classes"][3],
)
with open("out.json", "w") as file:
    json.dump(out, file)
"""


def test_inferencers_in_a_fresh_process(published, known, tmp_path):
    """No import of ours, no config file, no data; the same predictions as before publishing."""
    photo = str(known["mmdet"].data / "val/0.png")
    files = [str(after) for _, _, after in published.values()]
    command = [sys.executable, "-W", "ignore", "-c", INFERENCE, photo, *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "out.json").read_text())
    expected = {}
    for scope, (config, before, _) in published.items():
        expected[scope] = Predictor(config, str(before), "cpu").predict(photo)
    instances = expected["mmdet"].pred_instances
    assert seen["scores"] == pytest.approx(instances.scores.tolist(), abs=1e-5)
    assert np.allclose(seen["boxes"], instances.bboxes.numpy(), atol=1e-3)
    assert len(seen["boxes"]) > 0
    assert seen["labels"] == expected["mmseg"].pred_sem_seg.data[0].tolist()
    assert seen["third"] == "class 3"
    scores = expected["mmpretrain"].pred_score
    assert seen["class_scores"] == pytest.approx(scores.tolist(), abs=1e-5)
    assert seen["class_name"] == f"class {int(scores.argmax())}"


def test_bad_input(run_tool, tmp_path):
    (tmp_path / "models").mkdir()
    weights, meta = dict(weight=torch.zeros(1)), dict(cfg="a = 1\n")
    named = dict(meta, dataset_meta=dict(classes=("a", "b")))
    for error, match, content, out in (
        (CheckpointError, "'in.pth' is not a file", None, "out.pth"),
        (CheckpointError, "no config in it", dict(model=weights), "out.pth"),
        (CheckpointError, "no config in it", dict(state_dict=weights), "out.pth"),
        (CheckpointError, "no class names in it", dict(state_dict=weights, meta=meta), "out.pth"),
        (CheckpointError, "no weights under 'state_dict'", dict(meta=named), "out.pth"),
        (UsageError, "'models' is a folder", dict(state_dict=weights, meta=named), "models"),
    ):
        if content is not None:
            torch.save(content, tmp_path / "in.pth")
        with pytest.raises(error, match=match):
            run_tool("publish_model", "in.pth", out, cwd=tmp_path)
        assert {path.name for path in tmp_path.glob("*.*")} <= {"in.pth"}
