"""ViG in the libraries' own configs: only the backbone and the channels behind it change."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.hub import get_config
from one_iteration import train_and_predict
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = re.findall(
    r"```bash\n(CONFIGS=.*?)```", (ROOT / "docs" / "swap.md").read_text(), re.DOTALL
)

HIERARCHICAL = dict(
    type="vig_mm.HierViG", embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)
)
THREE_MAPS = dict(HIERARCHICAL, out_indices=(1, 2, 3))
LAST_MAP = dict(HIERARCHICAL, out_indices=-1)
PLAIN = dict(type="vig_mm.ViG", embed_dims=32, depth=4, num_heads=2)
CHANNELS = [16, 32, 64, 128]
NECK, THREE_NECK = {"neck.in_channels": CHANNELS}, {"neck.in_channels": CHANNELS[1:]}
HEAD, LINEAR = {"decode_head.in_channels": CHANNELS}, {"head.in_channels": CHANNELS[-1]}
TWO_HEADS = HEAD | {"auxiliary_head.in_channels": CHANNELS[2]}
FOUR_BLOCKS = {
    "neck.in_channels": [32] * 4,
    "neck.out_channels": 32,
    "decode_head.in_channels": [32] * 4,
    "auxiliary_head.in_channels": 32,
    "pretrained": None,
}
ADE = "8xb2-160k_ade20k-512x512.py"

# stock config -> (backbone, what else has to change)
STOCK = {
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py": (HIERARCHICAL, NECK),
    "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py": (
        THREE_MAPS,
        THREE_NECK | {"neck.start_level": 0},
    ),
    "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py": (THREE_MAPS, THREE_NECK),
    "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py": (THREE_MAPS, THREE_NECK),
    f"mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_{ADE}": (HIERARCHICAL, TWO_HEADS),
    "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py": (
        HIERARCHICAL,
        TWO_HEADS | {"pretrained": None},
    ),
    f"mmseg::segformer/segformer_mit-b0_{ADE}": (HIERARCHICAL, HEAD),
    f"mmseg::mask2former/mask2former_r50_{ADE}": (HIERARCHICAL, HEAD),
    f"mmseg::vit/vit_deit-b16_mln_upernet_{ADE}": (
        dict(PLAIN, out_indices=(0, 1, 2, 3)),
        FOUR_BLOCKS,
    ),
    "mmpretrain::resnet/resnet50_8xb32_in1k.py": (LAST_MAP, LINEAR),
    "mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py": (LAST_MAP, LINEAR),
    "mmpretrain::convnext/convnext-tiny_32xb128_in1k.py": (
        PLAIN,
        {"head.in_channels": 32, "neck.type": "GlobalAveragePooling"},
    ),
}


def name(stock: str) -> str:
    return stock.rpartition("/")[2].removesuffix(".py")


@pytest.mark.parametrize("stock", STOCK, ids=name)
def test_trains_an_iteration_and_predicts(stock, tmp_path):
    cfg = get_config(stock)
    cfg.model.backbone, changes = STOCK[stock]
    cfg.merge_from_dict({f"model.{key}": value for key, value in changes.items()})
    size = (64, 64)
    if cfg.default_scope == "mmdet":  # DINO picks 900 queries among as many places
        size = (208, 224) if "dino" in stock else (128, 160)
    if cfg.default_scope == "mmseg":
        size = cfg.model.data_preprocessor.size = (128, 128)
    train_and_predict(cfg, size, tmp_path)


def draw(*paths: Path, mode: str = "RGB") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (64, 96, 3) if mode == "RGB" else (64, 96)
        Image.fromarray(np.random.default_rng(0).integers(0, 151, shape, np.uint8)).save(path)


def coco(root: Path) -> list[str]:
    """Two images of COCO's 80 classes; returns the options that make a short run."""
    from mmdet.datasets import CocoDataset

    square = dict(id=1, image_id=1, category_id=1, iscrowd=0, area=900, bbox=[10, 10, 30, 30])
    square["segmentation"] = [[10, 10, 40, 10, 40, 40, 10, 40]]
    names = CocoDataset.METAINFO["classes"]
    content = dict(
        images=[dict(id=1, file_name="1.jpg", height=64, width=96)],
        annotations=[square],
        categories=[dict(id=i, name=name) for i, name in enumerate(names, 1)],
    )
    (root / "data/coco/annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        draw(root / "data/coco" / split / "1.jpg")
        path = root / "data/coco/annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))
    return [
        "train_cfg.max_epochs=1",
        "train_dataloader.dataset.pipeline.2.scale=(96,64)",
        "val_dataloader.dataset.pipeline.1.scale=(96,64)",
    ]


def ade20k(root: Path) -> list[str]:
    """An image and a label map for training, another for validation."""
    for split in ("training", "validation"):
        for kind, suffix, mode in (("images", "jpg", "RGB"), ("annotations", "png", "L")):
            folder = root / "data/ade/ADEChallengeData2016" / kind / split
            draw(folder / f"1.{suffix}", mode=mode)
    return [
        "train_cfg.max_iters=1",
        "train_cfg.val_interval=1",
        "model.data_preprocessor.size=(192,192)",
        "train_dataloader.dataset.pipeline.2.scale=(96,64)",
        "val_dataloader.dataset.pipeline.1.scale=(96,64)",
    ]


def imagenet(root: Path) -> list[str]:
    """Two images for training and two for validation, listed in files."""
    for split in ("train", "val"):
        draw(*(root / "data/imagenet" / split / f"{i}.jpg" for i in range(2)))
        listing = root / "data/imagenet/meta" / f"{split}.txt"
        listing.parent.mkdir(exist_ok=True)
        listing.write_text("0.jpg 0\n1.jpg 999\n")
    return ["train_cfg.max_epochs=1"]


DATA = dict(mmdet=coco, mmseg=ade20k, mmpretrain=imagenet)


@pytest.mark.parametrize("library", DATA)
def test_documented_command(library, tmp_path):
    """An iteration and a validation, with as few changes as a short run on tiny images needs."""
    (command,) = (c for c in COMMANDS if f"import {library};" in c)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    options = ["default_hooks.logger.interval=1", "default_hooks.checkpoint=None"]
    options += DATA[library](tmp_path)
    for loader in ("train_dataloader", "val_dataloader"):
        options += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
    command = command.strip() + " " + " ".join(f"'{option}'" for option in options)
    command = f'python() {{ {sys.executable} -W ignore "$@"; }}\n{command}'
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"\(train\) .*1/1\] .* loss: \d", done.stdout)
    assert re.search(r"\(val\) .*1/1\]", done.stdout)
