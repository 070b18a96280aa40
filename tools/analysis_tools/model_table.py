"""Count parameters and FLOPs of all configs and write them wherever they are shown.

Example: python tools/analysis_tools/model_table.py

Covers every config under configs/ except the small `-mini_` examples. What is counted, and at
which input size, stands in get_flops.py. Writes docs/models.json and, from it, the tables of
docs/models.md and configs/*/metafile.yml (peers left out); and the table of docs/deploy.md from the
exports that `tools/export_onnx.py --report docs/export.json` has listed.
"""

import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import yaml
from common import ROOT, fill, make_parser, markdown, write, write_json
from get_flops import count
from mmengine.config import Config

import vig_mm

COMMAND = "python tools/analysis_tools/model_table.py"
HEAD = f"""# Written by `{COMMAND}`: do not edit. FLOPs are
# multiply-adds of one image, see get_flops.py beside it. Accuracies are the paper's;
# none was measured here.
"""
PAPER = {
    "Title": "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention",
    "URL": "https://arxiv.org/abs/2405.18425",
}
# ImageNet-1K top-1 in percent at 224x224, as the paper reports it (none was measured here), and the
# file that ViG's authors publish, what `mim download` fetches.
PUBLIC_WEIGHTS = "https://huggingface.co/hustvl/ViG/resolve/main/{}.pth"
REPORTED = {
    "vig-t_8xb128_in1k": (77.2, "vig_t_77p2acc"),
    "vig-s_8xb128_in1k": (81.7, "vig_s_81p7acc"),
    "vig-b_8xb128_in1k": (82.6, "vig_b_82p6acc"),
    "vig-h-t_8xb128_in1k": (82.8, "vig_h_t_82p8acc"),
    "vig-h-s_8xb128_in1k": (83.8, "vig_h_s_83p8acc"),
    "vig-h-b_8xb128_in1k": (84.2, "vig_h_b_84p2acc"),
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
    epochs = "max_epochs" in cfg.train_cfg
    key, unit = ("max_epochs", "epochs") if epochs else ("max_iters", "iterations")
    top1, _ = REPORTED.get(path.stem, (None, None))
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
    return HEAD + yaml.safe_dump(content, sort_keys=False, width=100)


def _index_entry(model: dict) -> dict:
    name, _, data = COLLECTIONS[model["model"]]
    metadata = {"Training Data": data}
    metadata |= {key.title(): model[key] for key in ("epochs", "iterations") if key in model}
    metadata |= {"Parameters": model["parameters"], "FLOPs": model["flops"]}
    metadata["FLOPs Input Size"] = "{}x{}".format(*model["input"])
    stem = Path(model["config"]).stem
    index = {"Name": stem, "In Collection": name, "Config": model["config"], "Metadata": metadata}
    if stem in REPORTED:
        top1, file = REPORTED[stem]
        metadata["Accuracy Source"] = "reported by the paper (arXiv 2405.18425)"
        metrics = {"Top 1 Accuracy": top1}
        index["Results"] = [{"Task": "Image Classification", "Dataset": data, "Metrics": metrics}]
        index["Weights"] = PUBLIC_WEIGHTS.format(file)
    return index


def arch_table() -> str:
    """The sizes of both families, from the backbones' own tables."""
    rows = []
    for title, kind in (("ViG", vig_mm.ViG), ("ViG-H", vig_mm.HierViG)):
        for arch, settings in kind.arch_zoo.items():
            depths = settings.get("depths") or (settings["depth"],)
            heads = settings["num_heads"]
            heads = heads if isinstance(heads, tuple) else (heads,)
            width = settings["embed_dims"]
            lists = [width * 2**i for i in range(len(depths))], depths, heads
            name, code = f"{title}-{arch[0].upper()}", f"`{kind.__name__}`, `{arch}`"
            v_width = width // heads[0]
            cells = (", ".join(map(str, x)) for x in lists)
            rows.append([name, code, *cells, f"{v_width // 2}, {v_width}"])
    return markdown(["", "type, arch", "C", "blocks", "H", "K, V"], rows)


def model_tables(models: Sequence[dict]) -> str:
    """One table a task, its peers in a table of their own."""
    parts = []
    models = [m for m in models if "px_test" not in m["config"]]  # as the model that they test
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
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def export_table(exports: Sequence[dict]) -> str:
    """A row for each export: what, how large, and how far onnxruntime is off at any size."""
    columns = ["config", "exported", "parameters, M", "file, MB", "dynamic", "largest difference"]
    rows = []
    for export in sorted(exports, key=lambda export: (export["part"], export["parameters"])):
        link = f"[{Path(export['config']).stem}](../{export['config']})"
        sizes = f"{export['parameters'] / 1e6:.1f}", f"{export['bytes'] / 2**20:.0f}"
        off = max(max(check["differences"].values()) for check in export["checks"])
        rows.append([link, export["part"], *sizes, ", ".join(export["dynamic"]), f"{off:.1e}"])
    shapes = sorted({tuple(check["shape"]) for export in exports for check in export["checks"]})
    versions = sorted({tuple(export["versions"].items()) for export in exports})
    images = ", ".join("{} x {}x{}".format(*shape) for shape in shapes)
    used = "; ".join(", ".join(f"{name} {number}" for name, number in x) for x in versions)
    return f"{markdown(columns, rows)}\n\nImages: {images} (batch x HxW). {used}."


def page(text: str, models: Sequence[dict]) -> str:
    """docs/models.md with its tables renewed."""
    return fill(fill(text, "archs", arch_table()), "models", model_tables(models))


def main() -> None:
    make_parser(__doc__).parse_args()
    docs = ROOT / "docs"
    if not docs.is_dir():
        sys.exit(f"error: no folder {docs}: run this in a checkout of the repository")
    models = [entry(path) for path in config_files()]
    write_json(docs / "models.json", command=COMMAND, models=models)
    texts = {docs / "models.md": page((docs / "models.md").read_text(), models)}
    for scope in TITLES:
        chosen = [model for model in models if model["scope"] == scope]
        texts[ROOT / "configs" / scope / "metafile.yml"] = metafile(chosen)
    deploy, listed = docs / "deploy.md", docs / "export.json"
    if deploy.is_file() and listed.is_file():
        exports = json.loads(listed.read_text())["exports"]
        texts[deploy] = fill(deploy.read_text(), "exports", export_table(exports))
    for path, text in texts.items():
        write(path, text)
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
