"""The layouts that docs/custom_data.md shows: each config reads its layout, and right labels."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from vig_mm.checks.data import check_data

ROOT = Path(__file__).resolve().parents[2]
BASE = "./vig-h-t_upernet_8xb2-160k_ade20k-512x512.py"
# data root, image, label map, its values, the same as the model gets them
LAYOUTS = {
    "CityscapesDataset": (
        "data/cityscapes", "leftImg8bit/{}/ulm/1_leftImg8bit.png",
        "gtFine/{}/ulm/1_gtFine_labelTrainIds.png", [0, 18, 255], [0, 18, 255],
    ),
    "LoveDADataset": (
        "data/loveDA", "img_dir/{}/1.png", "ann_dir/{}/1.png", [0, 1, 7], [0, 6, 255],
    ),
    "PotsdamDataset": (
        "data/potsdam", "img_dir/{}/1.png", "ann_dir/{}/1.png", [0, 1, 6], [0, 5, 255],
    ),
}  # fmt: skip


def block(kind: str) -> str:
    """The config of a data set; Potsdam's is LoveDA's with what the text says."""
    text = (ROOT / "docs/custom_data.md").read_text()
    shown = "LoveDADataset" if kind == "PotsdamDataset" else kind
    (found,) = (x for x in re.findall(r"```python\n(.*?)```", text, re.S) if f"'{shown}'" in x)
    if kind == "PotsdamDataset":
        assert "`type='PotsdamDataset'`, `data_root='data/potsdam'` and 6 classes" in text
        found = found.replace(shown, kind).replace("data/loveDA", "data/potsdam")
        found = found.replace("num_classes=7", "num_classes=6")
    assert BASE in found
    return found.replace(BASE, str(ROOT / "configs/mmseg" / BASE))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layout(kind, tmp_path, monkeypatch):
    root, image, label, values, loaded = LAYOUTS[kind]
    for split in ("train", "val"):
        for name, content in ((image, np.zeros((64, 64, 3))), (label, np.resize(values, (64, 64)))):
            path = tmp_path / root / name.format(split)
            path.parent.mkdir(parents=True)
            Image.fromarray(content.astype(np.uint8)).save(path)
    (tmp_path / "config.py").write_text(block(kind))
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile("config.py")
    assert check_data(cfg) == []
    with DATASETS.switch_scope_and_registry("mmseg") as registry:
        dataset = registry.build(cfg.val_dataloader.dataset)
    assert len(dataset) == 1
    labels = dataset[0]["data_samples"].gt_sem_seg.data
    assert np.unique(labels).tolist() == loaded
