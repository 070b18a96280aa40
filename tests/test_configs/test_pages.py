"""The configs that README and the pages show are read, build, and have nothing to warn of."""

import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, MODELS
from PIL import Image

from vig_mm.checks.config import read_config
from vig_mm.checks.data import check_data
from vig_mm.checks.recipe import check_recipe, recipe_notes

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/quickstart.md", "docs/swap.md", "docs/custom_data.md")
BLOCKS = {
    f"{page}:{re.search(r'# (.*)|$', block)[1]}": block
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    if "_base_ = " in block
}


@pytest.mark.parametrize("block", BLOCKS)
def test_config_of_a_page(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shown.py").write_text(BLOCKS[block])
    cfg = read_config("shown.py")
    check_recipe(cfg)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = registry.build(cfg.model)
    assert recipe_notes(cfg, model) == []


def test_every_page_shows_some():
    assert {key.partition(":")[0] for key in BLOCKS} == set(PAGES) and len(BLOCKS) == 14


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
    "MapLabels": (
        "data/cells", "images/{}/1.png", "masks/{}/1.png", [0, 255], [0, 1],
    ),
}  # fmt: skip


def layout(kind: str) -> str:
    """The config of a data set; Potsdam's is LoveDA's with what the text says."""
    shown = "LoveDADataset" if kind == "PotsdamDataset" else kind
    (found,) = (x for x in BLOCKS.values() if f"'{shown}'" in x or f"vig_mm.{shown}" in x)
    if kind == "PotsdamDataset":
        text = (ROOT / "docs/custom_data.md").read_text()
        assert "`type='PotsdamDataset'`, `data_root='data/potsdam'` and 6 classes" in text
        found = found.replace(shown, kind).replace("data/loveDA", "data/potsdam")
        found = found.replace("num_classes=7", "num_classes=6")
    return found


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layout(kind, tmp_path, monkeypatch):
    """Each config of a segmentation layout reads its layout, and right labels."""
    root, image, label, values, loaded = LAYOUTS[kind]
    for split in ("train", "val"):
        for name, content in ((image, np.zeros((64, 64, 3))), (label, np.resize(values, (64, 64)))):
            path = tmp_path / root / name.format(split)
            path.parent.mkdir(parents=True)
            Image.fromarray(content.astype(np.uint8)).save(path)
    (tmp_path / "config.py").write_text(layout(kind))
    monkeypatch.chdir(tmp_path)
    cfg = read_config("config.py")
    assert check_data(cfg) == []
    with DATASETS.switch_scope_and_registry("mmseg") as registry:
        dataset = registry.build(cfg.val_dataloader.dataset)
    assert len(dataset) == 1
    labels = dataset[0]["data_samples"].gt_sem_seg.data
    assert np.unique(labels).tolist() == loaded
