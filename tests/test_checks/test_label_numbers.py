"""Label maps as they come: other void numbers, 0 and 255, from 1, gaps, colours, own transforms."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from vig_mm.checks.data import DataCheck, check_data
from vig_mm.checks.data.guard import guard
from vig_mm.datasets.transforms import MapLabels
from vig_mm.errors import DataError, SampleError

CONFIG = Path(__file__).resolve().parents[2] / "configs/mmseg/vig-h-mini_upernet_digits.py"
SIDE = 16
RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


@pytest.fixture
def seg(tmp_path):
    """`seg(label, classes)`: config of one image and label map in train and val."""

    def make(label, classes, mapping=None, others=None, **changes):
        for split in ("training", "validation"):
            for folder, suffix in (("images", "jpg"), ("annotations", "png")):
                (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
                image = np.zeros((SIDE, SIDE, 3), np.uint8)
                if folder == "annotations":
                    label = np.asarray(label, np.uint8)
                    image = np.resize(label, (SIDE, SIDE, *label.shape[1:]))
                Image.fromarray(image).save(tmp_path / folder / split / f"1.{suffix}")
        cfg = Config.fromfile(CONFIG)
        model = cfg.model
        model.decode_head.num_classes = model.auxiliary_head.num_classes = len(classes)
        options = dict(reduce_zero_label=False, metainfo=dict(classes=tuple(classes)))
        for split in ("train", "val", "test"):
            dataset = cfg[f"{split}_dataloader"].dataset
            del dataset.metainfo
            dataset.update(data_root=str(tmp_path), **{**options, **changes})
            if mapping:
                kind = dict(type="vig_mm.MapLabels", mapping=mapping, others=others)
                places = [
                    i for i, x in enumerate(dataset.pipeline) if x["type"] == "LoadAnnotations"
                ]
                dataset.pipeline.insert(places[0] + 1, kind)
        return cfg

    return make


def sample(cfg, split="val"):
    """The label map as the model gets it, through the guarded pipeline."""
    with DATASETS.switch_scope_and_registry("mmseg") as registry:
        dataset = registry.build(cfg[f"{split}_dataloader"].dataset)
    guard(dataset)
    return dataset[0]["data_samples"].gt_sem_seg.data.numpy()[0]


def errors(cfg):
    with pytest.raises(DataError) as caught:
        check_data(cfg)
    return str(caught.value)


TEN = [f"c{i}" for i in range(11)]


def declare(cfg, number, heads=True, metrics=True):
    if heads:
        cfg.model.decode_head.ignore_index = cfg.model.auxiliary_head.ignore_index = number
        cfg.model.data_preprocessor.seg_pad_val = number
    for split in ("val", "test") if metrics else ():
        cfg[f"{split}_evaluator"].ignore_index = number


@pytest.mark.parametrize("void", [11, 4, 200])
def test_void_number_of_its_own(void, seg):
    """0-10 are classes, another number (a class's place, too) is none; mmseg is told so."""
    cfg = seg([0, 1, 10, void], TEN, ignore_index=void)
    declare(cfg, void)
    assert check_data(cfg) == []
    assert set(np.unique(sample(cfg))) == {0, 1, 10, void}


def test_255_where_heads_ignore_another_number(seg):
    """Cross entropy stops at it then."""
    cfg = seg([0, 1, 255], TEN)
    declare(cfg, 11)
    assert "e.g. 1.png (255)" in errors(cfg)


def test_heads_that_ignore_different_numbers(seg):
    cfg = seg([0, 1, 11], TEN)
    cfg.model.decode_head.ignore_index = 11
    declare(cfg, 11, heads=False)
    padding, line = check_data(cfg)
    assert "seg_pad_val=255 fills label maps up" in padding
    assert "1.png (11)" in line and "where one part of the config ignores them and another" in line


def test_metric_that_was_not_told(seg):
    cfg = seg([0, 1, 11], TEN)
    declare(cfg, 11, metrics=False)
    found = DataCheck(cfg, ("train", "val")).findings
    assert [(one.severity, one.where) for one in found] == [("warning", "val_dataloader.dataset")]


def test_void_number_that_nothing_ignores(seg):
    message = errors(seg([0, 3, 11], TEN[:6]))
    assert "1.png (11)" in message and "mapping={11: 255}" in message
    assert "ignore_index=11" in message


# What a label map looks like: values, classes, words of the message
TRAPS = {
    "from 1": ([1, 2, 3], "abc", "they are numbered from 1 (1 to 3): set reduce_zero_label=True"),
    "one too many": ([0, 1, 2, 3], "abc", "0 to 3 are 4 numbers for 3 classes: if 0 is background"),
    "gaps": ([0, 4, 9], "abc", "gaps between them: put dict(type='vig_mm.MapLabels', mapping={4:"),
    "colours": (
        [BLACK, RED, GREEN], "abc", "mapping={(0, 0, 0): 0, (0, 255, 0): 1, (255, 0, 0): 2}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_trap_is_named(name, seg):
    label, classes, words = TRAPS[name]
    assert words in errors(seg(label, classes))


MAPPED = {
    "from 1": ([1, 2, 3], {1: 0, 2: 1, 3: 2}, None, [0, 1, 2]),
    "gaps": ([0, 4, 9, 255], {4: 1, 9: 2}, None, [0, 1, 2, 255]),
    "void": ([0, 1, 2, 11], {11: 255}, None, [0, 1, 2, 255]),
    "0 and 255": ([0, 255], {255: 1}, None, [0, 1]),
    "colours": ([BLACK, RED, GREEN], {BLACK: 255, RED: 0, GREEN: 2}, None, [0, 2, 255]),
    "other colours": ([BLACK, RED, GREEN], {RED: 1}, 255, [1, 255]),
    "other numbers": ([0, 7, 8], {7: 1}, 0, [0, 1]),
}


@pytest.mark.parametrize("name", MAPPED)
def test_map_labels(name, seg):
    label, mapping, others, expected = MAPPED[name]
    cfg = seg(label, "abc", mapping, others)
    assert [one.text for one in DataCheck(cfg, ("train", "val")).findings] == []
    got = sample(cfg)
    assert np.unique(got).tolist() == expected and got.dtype == np.int64
    value = label[1] if isinstance(label[1], tuple) else int(label[1])
    assert got[0, 1] == mapping.get(value, value if others is None else others)


def test_map_labels_in_a_config_file(seg, tmp_path):
    """Numbers and colours as keys outlive a config's dump, which every run writes."""
    cfg = seg([BLACK, RED, GREEN], "abc", {BLACK: 255, RED: 0, GREEN: 2})
    cfg.dump(tmp_path / "dumped.py")
    assert np.unique(sample(Config.fromfile(tmp_path / "dumped.py"))).tolist() == [0, 2, 255]


def test_map_labels_that_lacks_a_colour(seg):
    cfg = seg([BLACK, RED, GREEN], "abc", {BLACK: 0, RED: 1})
    assert "MapLabels has no entry for (0, 255, 0): add them, or set others=255" in errors(cfg)
    with pytest.raises(SampleError, match=r"1.png': MapLabels failed .*e.g. \[\(0, 255, 0\)\]"):
        sample(cfg)


@pytest.mark.parametrize(
    "mapping", [{}, [1, 2], {256: 1}, {1: 256}, {1: -1}, {(1, 2): 1}, {"a": 1}, {1: None}]
)
def test_mapping_that_is_none(mapping):
    with pytest.raises(ValueError, match="MapLabels"):
        MapLabels(mapping)


def test_masks_of_0_and_255(seg):
    cfg = seg([0, 255], ("background", "crack"))
    lines = check_data(cfg)
    assert len(lines) == 3 and all("'crack' is never learned" in line for line in lines)
    assert all("mapping={255: 1}" in line for line in lines)
    cfg = seg([0, 255], ("background", "crack"), {255: 1})
    assert check_data(cfg) == []
    cfg = seg([0, 255], ("background", "crack"), reduce_zero_label=True)
    assert all("nothing is learned at all" in line for line in check_data(cfg))


@TRANSFORMS.register_module()
class HalveLabels:
    """A user's transform: numbers 0, 2, 4 become 0, 1, 2."""

    def __call__(self, results):
        results["gt_seg_map"] = results["gt_seg_map"] // 2
        return results


def test_users_own_transform(seg):
    """What it makes of the numbers the check cannot know; the guard looks behind it."""
    cfg = seg([0, 2, 4], "abc")
    assert "1.png (4)" in errors(cfg)
    for split in ("train", "val", "test"):
        pipeline = cfg[f"{split}_dataloader"].dataset.pipeline
        load = next(i for i, one in enumerate(pipeline) if one["type"] == "LoadAnnotations")
        pipeline.insert(load + 1, dict(type="HalveLabels"))
    assert all("nothing to do if a transform of yours maps them" in x for x in check_data(cfg))
    assert np.unique(sample(cfg)).tolist() == [0, 1, 2]
    label = next(Path(cfg.val_dataloader.dataset.data_root).glob("annotations/validation/*"))
    Image.fromarray(np.full((SIDE, SIDE), 9, np.uint8)).save(label)
    with pytest.raises(SampleError, match="labels of no class: 4 as they are loaded"):
        sample(cfg)


def test_list_that_is_a_folder(seg, tmp_path):
    """mmseg lists the images of the folder then."""
    (tmp_path / "lists").mkdir()
    cfg = seg([0, 1], "ab", ann_file="lists")
    assert check_data(cfg) == []
    assert sample(cfg).shape[0] > 0


def test_users_own_data_set_class(seg, tmp_path):
    from mmseg.datasets import BaseSegDataset

    class Listed(BaseSegDataset):
        def load_data_list(self):
            return json.loads(Path(self.ann_file).read_text())

    DATASETS.register_module(module=Listed, name="ListedSegDataset", force=True)
    cfg = seg([0, 1], "ab")
    (tmp_path / "list.json").write_text("[]")
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.update(
            type="ListedSegDataset", ann_file="list.json", data_prefix=dict(img_path="nowhere")
        )
    assert check_data(cfg) == []
