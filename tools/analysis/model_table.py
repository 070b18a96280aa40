"""Count parameters and FLOPs of all configs and write them wherever they are shown.

Example: python tools/analysis/model_table.py

Covers every config under configs/ except the small `-mini_` examples. What is counted, and at
which input size, stands in count_flops.py. Writes docs/models.json and, from it, the tables of
docs/models.md (between their markers) and configs/*/metafile.yml (peers left out).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import yaml
from count_flops import count
from mmengine.config import Config
from rich.progress import track

import vig_mm

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python tools/analysis/model_table.py"
PAPER = {
    "Title": "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention",
    "URL": "https://arxiv.org/abs/2405.18425",
}
# ImageNet-1K top-1 in percent at 224x224, as the paper reports it. None was measured here.
REPORTED_TOP1 = {
    "vig-t_8xb128_in1k": 77.2,
    "vig-s_8xb128_in1k": 81.7,
    "vig-b_8xb128_in1k": 82.6,
    "vig-h-t_8xb128_in1k": 82.8,
    "vig-h-s_8xb128_in1k": 83.8,
    "vig-h-b_8xb128_in1k": 84.2,
}
# The files that ViG's authors publish, what `mim download` fetches. Their names end in the top-1.
PUBLIC_WEIGHTS = "https://huggingface.co/hustvl/ViG/resolve/main/{}.pth"
PUBLIC_FILES = {
    "vig-t_8xb128_in1k": "vig_t_77p2acc",
    "vig-s_8xb128_in1k": "vig_s_81p7acc",
    "vig-b_8xb128_in1k": "vig_b_82p6acc",
    "vig-h-t_8xb128_in1k": "vig_h_t_82p8acc",
    "vig-h-s_8xb128_in1k": "vig_h_s_83p8acc",
    "vig-h-b_8xb128_in1k": "vig_h_b_84p2acc",
}
# Class of the model -> its collection in the metafile, what it consists of, training data.
COLLECTIONS = {
    "ImageClassifier": ("ViG", ["Depth-wise Convolution", "Gated MLP"], "ImageNet-1k"),
    "MaskRCNN": ("Mask R-CNN with ViG", ["FPN", "RPN", "RoIAlign"], "COCO"),
    "CascadeRCNN": ("Cascade Mask R-CNN with ViG", ["FPN", "RPN", "RoIAlign"], "COCO"),
    "EncoderDecoder": ("UperNet with ViG", ["UPerNet"], "ADE20K"),
}
TITLES = {
    "mmpretrain": "Classification, ImageNet-1K",
    "mmdet": "Detection and instance segmentation, COCO",
    "mmseg": "Semantic segmentation, ADE20K",
}


def config_files() -> list[Path]:
    """The configs that are models to publish, and their peers."""
    return sorted(path for path in ROOT.glob("configs/mm*/**/*.py") if "-mini_" not in path.name)


def entry(path: Path) -> dict:
    """What docs/models.json says of a config."""
    cfg = Config.fromfile(path)
    key, unit = (
        ("max_epochs", "epochs") if "max_epochs" in cfg.train_cfg else ("max_iters", "iterations")
    )
    top1 = REPORTED_TOP1.get(path.stem)
    return {
        "config": path.relative_to(ROOT).as_posix(),
        "scope": cfg.default_scope,
        "model": cfg.model.type,
        unit: cfg.train_cfg[key],
        **count(cfg),
        **({"top1_reported": top1} if top1 else {}),
    }


def is_peer(model: dict) -> bool:
    return "/peers/" in model["config"]


def metafile(models: Sequence[dict]) -> str:
    """The metafile of the entries of one library."""
    models = [model for model in models if not is_peer(model)]
    kinds = {model["model"] for model in models}
    collections = []
    for kind, (name, parts, data) in COLLECTIONS.items():
        if kind in kinds:
            architecture = ["Bidirectional Gated Linear Attention", *parts]
            metadata = {"Training Data": data, "Architecture": architecture}
            collections.append({"Name": name, "Metadata": metadata, "Paper": dict(PAPER)})
    content = {"Collections": collections, "Models": [_index_entry(model) for model in models]}
    head = (
        f"# Written by `{COMMAND}`: do not edit. FLOPs are\n"
        "# multiply-adds of one image, see tools/analysis/count_flops.py. Accuracies are the\n"
        "# paper's; none was measured here.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, width=100)


def _index_entry(model: dict) -> dict:
    name, _, data = COLLECTIONS[model["model"]]
    metadata = {"Training Data": data}
    metadata |= {key.title(): model[key] for key in ("epochs", "iterations") if key in model}
    metadata["Parameters"] = model["parameters"]
    metadata["FLOPs"] = model["flops"]
    metadata["FLOPs Input Size"] = "{}x{}".format(*model["input"])
    index = {
        "Name": Path(model["config"]).stem,
        "In Collection": name,
        "Config": model["config"],
        "Metadata": metadata,
    }
    if "top1_reported" in model:
        metadata["Accuracy Source"] = "reported by the paper (arXiv 2405.18425)"
        metrics = {"Top 1 Accuracy": model["top1_reported"]}
        index["Results"] = [{"Task": "Image Classification", "Dataset": data, "Metrics": metrics}]
    if index["Name"] in PUBLIC_FILES:
        index["Weights"] = PUBLIC_WEIGHTS.format(PUBLIC_FILES[index["Name"]])
    return index


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def arch_table() -> str:
    """The sizes of both families, from the backbones' own tables."""
    rows = []
    for title, kind in (("ViG", vig_mm.ViG), ("ViG-H", vig_mm.HierViG)):
        for arch, settings in kind.arch_zoo.items():
            depths = settings.get("depths") or (settings["depth"],)
            heads = settings["num_heads"]
            heads = heads if isinstance(heads, tuple) else (heads,)
            width = settings["embed_dims"]
            widths = [width * 2**i for i in range(len(depths))]
            value_width = width // heads[0]
            rows.append(
                [
                    f"{title}-{arch[0].upper()}",
                    f"`{kind.__name__}`, `{arch}`",
                    *(", ".join(map(str, x)) for x in (widths, depths, heads)),
                    f"{value_width // 2}, {value_width}",
                ]
            )
    return _markdown(["", "type, arch", "C", "blocks", "H", "K, V"], rows)


def model_tables(models: Sequence[dict]) -> str:
    """One table a task, its peers in a table of their own."""
    parts = []
    for scope, title in TITLES.items():
        for peers in (False, True):
            chosen = [m for m in models if m["scope"] == scope and is_peer(m) is peers]
            if chosen:
                heading = f"### {title}" + (": peers" if peers else "")
                parts.append(f"{heading}\n\n{_model_table(chosen)}")
    return "\n\n".join(parts)


def _model_table(models: list[dict]) -> str:
    """A row for every model and input size, with all configs that share them."""
    columns = ["config", "parameters, M", "FLOPs, G", "at HxW"]
    reported = any("top1_reported" in model for model in models)
    if reported:
        columns.append("top-1, reported by the paper")

    def key(model: dict) -> tuple:
        cascade = model["model"] == "CascadeRCNN"
        return cascade, model["parameters"], model["flops"], model["input"]

    rows = []
    for (_, parameters, flops, size), group in groupby(sorted(models, key=key), key):
        group = sorted(group, key=lambda model: len(model["config"]))
        links = [f"[{Path(m['config']).stem}](../{m['config']})" for m in group]
        counts = (f"{parameters / 1e6:.2f}", f"{flops / 1e9:.2f}", "{}x{}".format(*size))
        rows.append(["<br>".join(links), *counts])
        if reported:
            rows[-1].append(str(group[0].get("top1_reported", "")))
    return _markdown(columns, rows)


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: the text has no such pair of markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"docs/models.md lacks the lines '{begin}' and '{end}' around a table")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def page(text: str, models: Sequence[dict]) -> str:
    """docs/models.md with its tables renewed."""
    return fill(fill(text, "archs", arch_table()), "models", model_tables(models))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    docs = ROOT / "docs"
    if not docs.is_dir():
        sys.exit(f"error: no folder {docs}: run this in a checkout of the repository")
    models = [entry(path) for path in track(config_files(), description="configs")]
    texts = {
        docs / "models.json": json.dumps({"command": COMMAND, "models": models}, indent=1) + "\n",
        docs / "models.md": page((docs / "models.md").read_text(), models),
    }
    for scope in TITLES:
        chosen = [model for model in models if model["scope"] == scope]
        texts[ROOT / "configs" / scope / "metafile.yml"] = metafile(chosen)
    for path, text in texts.items():
        path.write_text(text)
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
