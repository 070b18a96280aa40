"""tools/analysis/cost_vs_resolution.py: counts, claims, what is left out, files and picture."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("mmengine")

ROOT = Path(__file__).resolve().parents[3]
MACHINE = {"date": "2000-01-01", "cpu": "a CPU", "threads": 2, "torch": "2"}


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "analysis"))
        yield importlib.import_module("cost_vs_resolution")


@pytest.fixture(autouse=True)
def unlimited(tool, monkeypatch):
    """The tests' process goes on after the tool's."""
    monkeypatch.setattr(tool, "limit_memory", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def vig_flops(width: int, hidden: int, size: int) -> tuple[int, int]:
    """Multiply-adds of plain ViG by hand, and those of down_proj among them."""
    tokens, blocks = (size // 16) ** 2, 12
    stem = (size // 8) ** 2 * 81 * 3 * (width // 2) + tokens * 9 * (width // 2) * width
    mixer = 9 * width + 2 * width**2 + 16 * width + 16 * width + 2 * width**2
    recurrence = 4 * width * 32  # over all heads: two directions, k v^T and q S, K = 32
    mlp = 3 * width * hidden
    total = stem + blocks * tokens * (mixer + recurrence + mlp) + 1000 * width
    return total, blocks * tokens * width * hidden


def deit_flops(width: int, size: int) -> int:
    patches, blocks = (size // 16) ** 2, 12
    tokens = patches + 1
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    return patches * 768 * width + blocks * block + 1000 * width


@pytest.mark.parametrize("size", [224, 512])
def test_one_counter_gives_the_closed_formulas(tool, size):
    vig = tool.count(tool.build("ViG-T", size), size)
    total, down = vig_flops(192, 512, size)
    assert vig["flops"] == total and vig[tool.WITHOUT_DOWN] == total - down
    sdpa, softmax = (tool.count(tool.build(x, size), size) for x in ("DeiT-T", "DeiT-T softmax"))
    assert sdpa == softmax
    assert sdpa["flops"] == deit_flops(192, size)
    assert tool.WITHOUT_DOWN not in sdpa


def test_published_size(tool):
    counted = tool.count(tool.build("ViG-T", 224), 224)
    assert counted["parameters"] == 5834536
    assert counted["weight_bytes"] == 4 * 5834536


def row(model, size, speed=None, **values):
    return {"model": model, "size": size, **values} | ({"images_per_s": speed} if speed else {})


def test_claims():
    claims = importlib.import_module("cost_claims")
    results = [
        row("ViG-T", 1024, 12.0, flops=20, flops_without_down_proj=16, peak_bytes=5),
        row("DeiT-T softmax", 1024, 3.0, flops=80, peak_bytes=40),
        row("DeiT-T", 1024, 24.0, flops=80, peak_bytes=4),
        row("ViG-S", 224, parameters=1, flops=1),
        row("DeiT-B", 224, parameters=4, flops=5),
        row("ViG-T", 2048, 1.0, flops=2, flops_without_down_proj=1),
        row("DeiT-T softmax", 2048, flops=24, missing="out of memory"),
    ]
    found = {x["claim"]: x for x in claims.evaluate(results, "cpu")}

    def texts(claim):
        entry = found[claim]
        return entry["softmax_text"], entry["sdpa_text"], entry["on"]

    tiny, cpu = "ViG-T against DeiT-T at 1024x1024: ", "CPU; the paper means a GPU"
    assert texts(tiny + "fewer FLOPs") == ("4.00x", "4.00x", "counted")
    assert texts(tiny + "fewer FLOPs without down_proj")[0] == "5.00x"
    assert texts(tiny + "faster") == ("4.00x", "0.50x", cpu)
    assert texts(tiny + "less memory") == ("88 %", "25 % more", cpu)
    base = "ViG-S against DeiT-B at 224x224: "
    assert texts(base + "parameters") == ("not measured", "25.0 %", "counted")
    assert texts(base + "FLOPs")[1] == "20.0 %"
    large = "ViG-T against DeiT-T at 2048x2048: "
    assert texts(large + "faster") == ("out of memory", "not measured", cpu)
    assert texts(large + "fewer FLOPs")[0] == "12.0x"
    assert {x["on"] for x in claims.evaluate(results, "cuda")} == {"counted", "GPU"}


def test_what_is_worth_most_comes_first(tool):
    order = tool.contests(list(tool.MODELS), list(tool.SIZES))
    assert [(x.models[0], x.size) for x in order[:4]] == [
        ("ViG-T", 224), ("ViG-T", 1024), ("ViG-S", 224), ("ViG-T", 2048),
    ]  # fmt: skip
    pairs = [(name, contest.size) for contest in order for name in contest.models]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {(name, size) for name in tool.MODELS for size in tool.SIZES}
    assert tool.contests(["Swin-T"], [96]) == [tool.Contest(("Swin-T",), 96)]


def test_peak_memory_is_what_is_held_at_most(tool):
    def run():
        a = torch.ones(2**20)  # 4 MiB
        b = a + 1
        del a
        return b.view(2, -1).sum(0)  # 2 MiB more

    peak = importlib.import_module("measuring").Cpu().first(run)["peak_bytes"]
    assert peak == pytest.approx(8 * 2**20, rel=0.01)


def test_slow_models_are_left_out(tool):
    measurement = tool.Measurement(tool.make_device("cpu"), 1, 10.0, tool.Budget(1), 0.0)
    assert measurement.expected("ViG-T", 100) == 0
    measurement.rates = {"ViG-T": 50.0, "DeiT-T": 10.0, "Swin-T": 20.0}
    assert measurement.expected("ViG-T", 100) == 2
    assert measurement.expected("DeiT-B", 100) == 5  # as fast as the median of the others
    assert measurement.too_long(9.0, planned=0.0) is None
    assert measurement.too_long(11.0, planned=0.0) == "left out: about 11 s a pass"
    assert measurement.too_long(9.0, planned=10.0) == "left out: time was up"


def call(tool, monkeypatch, capsys, *args) -> str:
    monkeypatch.setattr(sys, "argv", ["cost_vs_resolution.py", *map(str, args)])
    capsys.readouterr()
    tool.main()
    return capsys.readouterr().out


@pytest.fixture
def quick(tool, monkeypatch):
    monkeypatch.setattr(tool, "SECONDS", {"cpu": 0.0})
    monkeypatch.setattr(tool, "BATCH", {"cpu": 2})


def test_measurement_picture_and_page(tool, quick, tmp_path, monkeypatch, capsys):
    page, out = tmp_path / "cost.md", tmp_path / "new/cost.json"
    page.write_text("before\n<!-- cost:begin -->old<!-- cost:end -->\nafter\n")
    arguments = ("--device", "cpu", "--threads", 1, "--sizes", 32, 64, "--out", out, "--page", page)
    models = ("ViG-T", "DeiT-T", "GC ViT-T")
    call(tool, monkeypatch, capsys, "--models", *models, *arguments)

    data = json.loads(out.read_text())
    rows = {(row["model"], row["size"]): row for row in data["results"]}
    assert set(rows) == {(name, size) for name in models for size in (32, 64)}
    assert {"date", "cpu", "threads", "torch"} <= set(data["machine"])
    assert data["settings"]["precision"] == "float32" and "timm" in data["settings"]
    for name in ("ViG-T", "DeiT-T"):
        for size in (32, 64):
            found = rows[name, size]
            latency = found["latency"]
            assert 0 < latency["min"] <= latency["median"] <= latency["max"]
            assert latency["runs"] == 3 and found["batch"] == 2
            assert found["images_per_s"] == pytest.approx(2 / found["throughput"]["median"])
            assert found["total_bytes"] == found["peak_bytes"] + found["weight_bytes"]
        assert rows[name, 64]["peak_bytes"] > rows[name, 32]["peak_bytes"] > 0
    assert "no window of 7 or 8 fits an image of 64" in rows["GC ViT-T", 64]["missing"]

    pixels = importlib.import_module("matplotlib.image").imread(out.with_suffix(".png"))[..., :3]
    for panel in (pixels[i::2] for i in range(2)):
        assert np.unique(panel.reshape(-1, 3), axis=0).shape[0] > 20
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert (
        "](new/cost.png)" in text and "| ViG-T " in text and "### 64x64" in text and "16.7x" in text
    )

    out.with_suffix(".png").unlink()
    page.write_text("<!-- cost:begin --><!-- cost:end -->")
    call(tool, monkeypatch, capsys, "--plot", out, "--page", page)
    assert out.with_suffix(".png").exists() and "| ViG-T " in page.read_text()


def test_time_limit_leaves_counts_and_resume_measures(tool, quick, tmp_path, monkeypatch, capsys):
    out = tmp_path / "cost.json"
    arguments = ("--device", "cpu", "--threads", 1, "--models", "ViG-T", "--sizes", 32)
    call(tool, monkeypatch, capsys, *arguments, "--minutes", 0, "--out", out)
    (left,) = json.loads(out.read_text())["results"]
    assert left["missing"] == "left out: time was up" and left["flops"] > 0
    call(tool, monkeypatch, capsys, *arguments, "--resume", "--out", out)
    (measured,) = json.loads(out.read_text())["results"]
    assert "latency" in measured and "missing" not in measured
    call(tool, monkeypatch, capsys, *arguments, "--resume", "--minutes", 0, "--out", out)
    assert json.loads(out.read_text())["results"] == [measured]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "ViG-X"), "unknown ViG-X; there are ViG-T, "),
        (("--sizes", "16"), "at least 32 pixels, got 16"),
        (("--batch", "0"), "--batch: at least 1, got 0"),
        (("--plot", "nowhere.json"), "nowhere.json is not a file"),
    ],
    ids=("model", "size", "batch", "plot"),
)
def test_bad_input_is_one_clear_error(tool, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        call(tool, monkeypatch, capsys, *arguments)
    assert message in capsys.readouterr().err


def test_page_without_markers(tool, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    data = {"machine": MACHINE, "settings": {}, "claims": [], "results": []}
    with pytest.raises(SystemExit, match="page.md needs lines '<!-- cost:begin -->'"):
        tool.fill_page(page, data, tmp_path / "cost.png")
