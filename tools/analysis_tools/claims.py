"""The table of every claim of the paper and of the authors' figure: its command, what was found.

Examples:
    python tools/analysis_tools/claims.py --page docs/measurements.md
    python tools/analysis_tools/claims.py --weights ViG-T=vig_t.pth DeiT-T=deit_t.pth \\
        ViG-S=vig_s.pth DeiT-B=deit_b.pth --accuracy top1.json

Cost is what `cost_vs_resolution.py` wrote to --cost. With --weights and ImageNet-1K in
data/imagenet the test configs of those models run, and their scores go to --accuracy, from which
they are shown. Other options go to tools/test.py. Weights are public ones, or trained here.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from common import ROOT, fill_page, make_parser, markdown, read_json, run, write_json
from cost_vs_resolution import SOFTMAX, WITHOUT_DOWN

from vig_mm.errors import UsageError

TABLE = "claims"  # name of the markers in the page
CONFIGS = ROOT / "configs/mmpretrain"
SIZES = (224, 384, 512, 640, 768, 1024)
TESTS = {"ViG-T": SIZES, "DeiT-T": SIZES, "ViG-S": (224,), "DeiT-B": (224,)}


class Claim(NamedTuple):
    """A sentence of the paper (arXiv 2405.18425), or of the authors' figure of ViG-T and DeiT-T."""

    text: str
    paper: str
    source: str
    size: int
    key: str
    kind: str = "times"  # "share": % of the rival's; "less": % less; "points"; "values"
    models: tuple[str, str] = ("ViG-T", "DeiT-T")


_BASE = ("ViG-S", "DeiT-B")
CLAIMS = (
    Claim("parameters", "27 %", "abstract", 224, "parameters", "share", _BASE),
    Claim("FLOPs", "20 %", "abstract", 224, "flops", "share", _BASE),
    Claim("FLOPs without down_proj", "20 %", "abstract", 224, WITHOUT_DOWN, "share", _BASE),
    Claim("faster", "2x", "abstract", 224, "images_per_s", "times", _BASE),
    Claim("top-1", "81.7, 81.8 %", "tables", 224, "top1", "values", _BASE),
    Claim("top-1", "77.2, 72.2 %", "tables", 224, "top1", "values"),
    Claim("top-1", "about 78, 71 %", "figure", 384, "top1", "values"),
    Claim("fewer FLOPs", "2.2x", "figure", 512, "flops"),
    Claim("fewer FLOPs without down_proj", "2.2x", "figure", 512, WITHOUT_DOWN),
    Claim("less memory", "1.9x", "figure", 512, "peak_bytes"),
    Claim("lower latency", "1.5x", "figure", 512, "latency"),
    Claim("top-1", "about 76, 66 %", "figure", 512, "top1", "values"),
    Claim("top-1", "about 73, 59 %", "figure", 640, "top1", "values"),
    Claim("top-1", "about 69, 52 %", "figure", 768, "top1", "values"),
    Claim("fewer FLOPs", "5.2x", "abstract, figure", 1024, "flops"),
    Claim("fewer FLOPs without down_proj", "5.2x", "abstract, figure", 1024, WITHOUT_DOWN),
    Claim("less memory", "90 %", "abstract", 1024, "peak_bytes", "less"),
    Claim("less memory", "6.7x", "figure", 1024, "peak_bytes"),
    Claim("less memory, weights counted", "6.7x", "figure", 1024, "total_bytes"),
    Claim("faster", "4.8x", "abstract", 1024, "images_per_s"),
    Claim("lower latency", "4.0x", "figure", 1024, "latency"),
    Claim("higher top-1", "20.7 points", "abstract", 1024, "top1", "points"),
    Claim("fewer FLOPs", "17.4x", "figure", 2048, "flops"),
    Claim("fewer FLOPs without down_proj", "17.4x", "figure", 2048, WITHOUT_DOWN),
    Claim("lower latency", "16.7x", "figure", 2048, "latency"),
)
COUNTED = ("parameters", "flops", WITHOUT_DOWN)


def found(claim: Claim, ours: dict, rival: dict) -> str:
    """The rival's value over ours, of speed and accuracy ours over the rival's, in its words."""
    key = "flops" if claim.key == WITHOUT_DOWN else claim.key
    a, b = ours.get(claim.key), rival.get(key)
    if a is None or b is None:
        missing = "not run: needs ImageNet-1K" if key == "top1" else "not measured"
        return ours.get("missing") or rival.get("missing") or missing
    if key == "latency":
        a, b = a["median"], b["median"]
    if claim.kind in ("values", "points"):
        return f"{a:.1f}, {b:.1f} %" if claim.kind == "values" else f"{a - b:.1f} points"
    ratio = a / b if key == "images_per_s" else b / a
    if claim.kind == "share":
        return f"{100 / ratio:.1f} %"
    if claim.kind == "less":
        saved = round(100 - 100 / ratio)
        return f"{saved} %" if saved >= 0 else f"{-saved} % more"
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"


def table(results: list[dict], device: str) -> str:
    """A line a claim: what it says, and what was found against both kinds of attention."""
    rows: dict[tuple[str, int], dict] = {}
    for row in results:
        rows.setdefault((row["model"], row["size"]), {}).update(row)
    lines = []
    for claim in CLAIMS:
        ours, rival = claim.models
        # accuracy does not depend on how attention is computed
        names = (rival, rival) if claim.key == "top1" else (rival + SOFTMAX, rival)
        mine = rows.get((ours, claim.size), {})
        cells = [found(claim, mine, rows.get((name, claim.size), {})) for name in names]
        on = "counted" if claim.key in COUNTED else "GPU" if device == "cuda" else "CPU"
        if claim.key == "top1":
            on, cells[1] = "`--weights`", "as softmax"
        text = f"{ours}, {rival} at {claim.size}: {claim.text}"
        lines.append([text, claim.paper, claim.source, *cells, on])
    return markdown(["", "paper", "in its", "found, softmax", "found, SDPA", "on, or by"], lines)


# Accuracy ---------------------------------------------------------------------------------------


def test_configs() -> dict[tuple[str, int], Path]:
    """The test config of each model and size."""
    files = {}
    for model, sizes in TESTS.items():
        folder = CONFIGS if model.startswith("ViG") else CONFIGS / "peers"
        for size in sizes:
            name = "8xb128_in1k" if size == 224 else f"in1k-{size}px_test"
            files[model, size] = folder / f"{model.lower()}_{name}.py"
    return files


def timm_file(path: str, folder: Path) -> str:
    """A file for `TimmClassifier`: ``path``, or a copy of weights that DeiT's authors publish."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("model", content)
    if "state_dict" in content or any(key.startswith("model.") for key in state):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{Path(path).stem}_mm.pth"
    torch.save({"state_dict": {f"model.{key}": x for key, x in state.items()}}, copy)
    return str(copy)


def top1(model: str, config: Path, checkpoint: str, options: list[str]) -> float:
    """Percent of a config's test data, by tools/test.py, with all of its checks."""
    folder = Path("work_dirs/claims") / config.stem
    if model.startswith("DeiT"):
        checkpoint = timm_file(checkpoint, folder)
    command = [sys.executable, ROOT / "tools/test.py", config, checkpoint, "--work-dir", folder]
    if subprocess.run([*map(str, command), *options]).returncode:
        raise UsageError(f"tools/test.py failed for {config.name}, see above")
    newest = max(folder.glob("*/*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())["accuracy/top1"]


def run_tests(args: argparse.Namespace, files: dict[tuple[str, int], Path]) -> None:
    """Scores of all models with weights; written after each."""
    rows = []
    for (model, size), config in files.items():
        if model in args.weights:
            score = top1(model, config, args.weights[model], args.options)
            rows.append({"model": model, "size": size, "top1": score, "config": config.name})
            write_json(args.accuracy, results=rows)
            print(f"{model} at {size}: {score:.2f} %", flush=True)


def weights(text: str) -> tuple[str, str]:
    """``MODEL=FILE``"""
    model, _, path = text.partition("=")
    if model not in TESTS or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL=FILE, of {', '.join(TESTS)}")
    return model, path


def main() -> None:
    parser = make_parser(__doc__, page=True)
    cost_file = ROOT / "docs/measured/cost.json"
    parser.add_argument("--cost", type=Path, default=cost_file, metavar="JSON")
    parser.add_argument("--weights", nargs="+", type=weights, default=[], metavar="MODEL=FILE")
    parser.add_argument("--accuracy", type=Path, default="work_dirs/claims.json", metavar="JSON")
    args, args.options = parser.parse_known_args()
    args.weights = dict(args.weights)
    if args.options and not args.weights:
        parser.error(f"unrecognized arguments: {' '.join(args.options)}")
    cost = read_json(args.cost) if args.cost.is_file() else {}
    if args.weights:
        run_tests(args, test_configs())
    accuracy = read_json(args.accuracy)["results"] if args.accuracy.is_file() else []
    device = "cuda" if "gpu" in cost.get("machine", {}) else "cpu"
    print(text := table(cost.get("results", []) + accuracy, device))
    if args.page:
        fill_page(args.page, TABLE, text)


if __name__ == "__main__":
    run(main)
