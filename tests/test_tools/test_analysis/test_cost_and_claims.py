"""cost_vs_resolution.py and claims.py: counts, what is left out, files, the paper's claims."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("mmpretrain")

from vig_mm.datasets import make_digits
from vig_mm.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
MINI = ROOT / "configs/mmpretrain/vig-h-mini_digits.py"


@pytest.fixture(scope="module")
def tool(analysis_tool):
    return analysis_tool("cost_vs_resolution")


@pytest.fixture
def claims(tool):
    return importlib.import_module("claims")


@pytest.fixture(autouse=True)
def quick(tool, monkeypatch):
    """Short timings; the process's memory is not limited and its threads are restored."""
    monkeypatch.setattr(tool, "SECONDS", {"cpu": 0.0})
    monkeypatch.setattr(tool, "BATCH", {"cpu": 2})
    monkeypatch.setattr("common.limit_memory", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def call(tool, monkeypatch, *args) -> None:
    monkeypatch.setattr("sys.argv", [f"{tool.__name__}.py", *map(str, args)])
    tool.main()


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
    def count(name):
        with torch.device("meta"):
            return tool.count(tool.build(name, size), size)

    vig, sdpa, softmax = map(count, ("ViG-T", "DeiT-T", "DeiT-T softmax"))
    total, down = vig_flops(192, 512, size)
    assert vig["flops"] == total and vig[tool.WITHOUT_DOWN] == total - down
    assert sdpa == softmax and sdpa["flops"] == deit_flops(192, size)
    assert tool.WITHOUT_DOWN not in sdpa
    if size == 224:
        assert vig["parameters"] == 5834536 and vig["weight_bytes"] == 4 * 5834536


def test_what_is_worth_most_comes_first(tool):
    order = list(tool.contests(list(tool.MODELS), list(tool.SIZES)))
    first = [(names[0], size) for names, size in order[:4]]
    assert first == [("ViG-T", 224), ("ViG-T", 1024), ("ViG-S", 224), ("ViG-T", 2048)]
    pairs = [(name, size) for names, size in order for name in names]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {(name, size) for name in tool.MODELS for size in tool.SIZES}
    assert list(tool.contests(["Swin-T"], [96])) == [(("Swin-T",), 96)]
    assert [tool.batch_at(size, 8) for size in (112, 224, 448, 1024)] == [8, 8, 2, 1]


def test_time_and_memory():
    """Rivals run in turn; the peak is what is held at most; a failure is noted."""
    common, calls = importlib.import_module("common"), []

    def run():
        calls.append("sum")
        a = torch.ones(2**20)  # 4 MiB
        b = a + 1
        del a
        return b.view(2, -1).sum(0)  # 2 MiB more

    def full():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    rivals = {"sum": run, "full": full, "broken": lambda: 1 / 0, "none": lambda: calls.append("no")}
    found = common.measure(rivals, 0.0, "cpu")
    assert found["sum"]["peak_bytes"] == pytest.approx(8 * 2**20, rel=0.01)
    assert found["sum"]["runs"] == 3 and 0 < found["sum"]["min"] <= found["sum"]["median"]
    assert found["full"] == {"missing": "out of memory"}
    assert found["broken"] == {"missing": "failed: division by zero"}
    assert calls == ["sum", "no"] * 5  # for memory, once more, three times


def test_files_and_what_is_left_out(tool, tmp_path, monkeypatch, capsys):
    out, page = tmp_path / "new/cost.json", tmp_path / "page.md"
    page.write_text("before\n<!-- cost:begin -->old<!-- cost:end -->\nafter\n")
    names = ("ViG-T", "DeiT-T", "MaxViT-T")
    run = ("--device", "cpu", "--threads", 1, "--sizes", 32, "--out", out, "--models", *names)
    call(tool, monkeypatch, *run, "--minutes", 0, "--longest", 1)
    rows = {row["model"]: row for row in json.loads(out.read_text())["results"]}
    assert rows["ViG-T"]["missing"] == "left out: time was up" and rows["ViG-T"]["flops"] > 0

    call(tool, monkeypatch, *run, "--resume", "--training", "--page", page)
    data = json.loads(out.read_text())
    rows = {row["model"]: row for row in data["results"]}
    assert rows["MaxViT-T"]["missing"] == "failed: MaxViT: no windows of 7 or 8 tile an image of 32"
    for name in names[:2]:
        row = rows[name]
        assert row["latency"]["runs"] == 3 and row["batch"] == 2
        assert row["images_per_s"] == pytest.approx(2 / row["throughput"]["median"])
        assert row["total_bytes"] == row["peak_bytes"] + row["weight_bytes"]
        assert row["training"]["peak_bytes"] > row["weight_bytes"]  # gradients
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "](new/cost.png)" in text and "32x32 |" in text
    assert "failed: MaxViT: no windows of 7 or 8 tile an image of 32: MaxViT-T at 32." in text
    imread = importlib.import_module("matplotlib.image").imread
    pixels = imread(out.with_suffix(".png"))[..., :3]
    assert np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 20

    half = json.loads(out.read_text())
    half["settings"]["precision"] = "bfloat16"
    other = tmp_path / "half.json"
    other.write_text(json.dumps(half))
    both = tmp_path / "both.png"
    call(tool, monkeypatch, "--plot", out, other, "--page", page, "--picture", both)
    text = page.read_text()
    assert "precision float32" in text and "precision bfloat16" in text
    assert len(imread(both)) > len(pixels)  # one panel more, of latency

    call(tool, monkeypatch, *run[:-3], *names[:2], "--resume", "--minutes", 0)
    kept = {row["model"]: row for row in json.loads(out.read_text())["results"]}
    assert kept == rows  # measured before
    data["machine"]["cpu"] = "another"
    out.write_text(json.dumps(data))
    capsys.readouterr()
    call(tool, monkeypatch, *run[:-3], "ViG-T", "--resume", "--minutes", 0)
    assert "another machine" in capsys.readouterr().out


def test_takeaways(tool):
    points = {"ViG-T": {224: 2.0, 512: 3, 2048: 10.0}, "DeiT-T": {224: 1.0, 2048: 45.0}}
    found = tool.takeaway("Latency", points)
    assert found == "Latency: DeiT-T 2.0x faster at 224, ViG-T 4.5x faster at 2048"
    assert tool.takeaway("Memory", points).startswith("Memory: DeiT-T 2.0x less at 224, ViG-T")
    assert tool.takeaway("FLOPs", {"Swin-T": {224: 1.0}}) == "FLOPs"
    assert len(tool.SERIES) <= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "ViG-X"), "unknown ViG-X; there are ViG-T, "),
        (("--sizes", "16"), "must be at least 32, got 16"),
        (("--batch", "0"), "must be at least 1, got 0"),
        (("--plot", "nowhere.json"), "must be an existing file, got nowhere.json"),
    ],
    ids=("model", "size", "batch", "plot"),
)
def test_bad_input_is_one_clear_error(tool, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        call(tool, monkeypatch, *arguments)
    assert message in capsys.readouterr().err


# Claims


def row(model, size, **values):
    return {"model": model, "size": size, **values}


def test_claims(claims):
    results = [
        row("ViG-T", 1024, images_per_s=12.0, flops=20, peak_bytes=5, latency={"median": 1.0}),
        row("ViG-T", 1024, top1=58.1),
        row("DeiT-T", 1024, top1=37.4),
        row("DeiT-T softmax", 1024, images_per_s=3.0, flops=80, peak_bytes=40),
        row("DeiT-T", 1024, images_per_s=24.0, flops=80, peak_bytes=4, latency={"median": 4.0}),
        row("ViG-S", 224, parameters=1),
        row("DeiT-B", 224, parameters=4),
        row("ViG-T", 2048, flops=2),
        row("DeiT-T softmax", 2048, missing="out of memory"),
    ]
    lines = claims.table(results, "cpu").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    found = {(x[0], x[1]): x[3:] for x in cells}
    cpu, tiny = "CPU", "ViG-T, DeiT-T at 1024: "
    assert found[tiny + "fewer FLOPs", "5.2x"] == ["4.00x", "4.00x", "counted"]
    assert found[tiny + "faster", "4.8x"] == ["4.00x", "0.50x", cpu]
    assert found[tiny + "less memory", "90 %"] == ["88 %", "25 % more", cpu]
    assert found[tiny + "less memory", "6.7x"] == ["8.00x", "0.80x", cpu]
    assert found[tiny + "lower latency", "4.0x"] == ["not measured", "4.00x", cpu]
    assert found[tiny + "higher top-1", "20.7 points"][0] == "20.7 points"
    base = found["ViG-S, DeiT-B at 224: parameters", "27 %"]
    assert base == ["not measured", "25.0 %", "counted"]
    assert found["ViG-T, DeiT-T at 2048: fewer FLOPs", "17.4x"][0] == "out of memory"
    assert found["ViG-T, DeiT-T at 640: top-1", "about 73, 59 %"][0].startswith("not run: needs")
    assert "| GPU |" in claims.table(results, "cuda").replace("  ", "")


def test_every_test_config_is_there(claims):
    files = claims.test_configs()
    assert len(files) == 14 and all(path.is_file() for path in files.values())


def test_accuracy_of_small_models(claims, tmp_path, monkeypatch, capsys):
    """The command runs the test configs of small models on the built-in data."""
    make_digits(tmp_path / "data/digits", coco=(0, 0), ade=(0, 0), imagenet=(1, 2))
    deit = tmp_path / "deit.py"
    deit.write_text(f"""_base_ = {str(MINI)!r}
model = dict(_delete_=True, type='TimmClassifier', model_name='test_vit', num_classes=10,
    dynamic_img_size=True, loss=dict(type='CrossEntropyLoss'),
    data_preprocessor={{{{_base_.model.data_preprocessor}}}})
""")
    files = {("ViG-T", 224): MINI, ("DeiT-T", 224): deit}
    monkeypatch.setattr(claims, "test_configs", lambda: files)
    from mmengine.config import Config
    from mmengine.registry import MODELS

    with MODELS.switch_scope_and_registry("mmpretrain") as registry:
        model = registry.build(Config.fromfile(MINI).model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "vig.pth")
    timm = importlib.import_module("timm")
    published = timm.create_model("test_vit", num_classes=10).state_dict()
    torch.save(dict(model=published), tmp_path / "deit.pth")  # as its authors do
    monkeypatch.chdir(tmp_path)
    weights = ("--weights", "ViG-T=vig.pth", "DeiT-T=deit.pth", "--no-check")
    call(claims, monkeypatch, "--cost", "none.json", *weights)
    rows = json.loads((tmp_path / "work_dirs/claims.json").read_text())["results"]
    assert [(x["model"], x["size"]) for x in rows] == list(files)
    assert all(0 <= x["top1"] <= 100 for x in rows)
    assert f"{rows[0]['top1']:.1f}, {rows[1]['top1']:.1f} %" in capsys.readouterr().out

    with pytest.raises(UsageError, match="tools/test.py failed for vig-h-mini_digits.py"):
        call(claims, monkeypatch, *weights, "--no-such-option")
    with pytest.raises(SystemExit):
        call(claims, monkeypatch, "--no-such-option")
    with pytest.raises(SystemExit):
        call(claims, monkeypatch, "--weights", "ViG-X=a.pth")
    assert "'ViG-X=a.pth' is not MODEL=FILE, of ViG-T" in capsys.readouterr().err
