"""tools/benchmark/dense_backbones.py on a stand-in of the GPU that has the CPU's clock."""

import json

import pytest
import torch
from test_benchmark import clock  # noqa: F401 - it also finds the benchmarks

pytest.importorskip("mmcv")

import dense_backbones
from common import Budget

import vig_mm


def entry(images_per_s, mib):
    seconds = 2 / images_per_s
    return {
        **dict(median=seconds, min=seconds, max=seconds),
        **dict(images_per_s=images_per_s, peak_bytes=mib * 2**20),
    }


def test_targets_and_table():
    results = {"ViG-H-T": entry(30.0, 600), "Swin-T": entry(25.0, 1000)}
    results["ViG-H-B"] = {"missing": "out of memory"}
    speed, memory = dense_backbones.targets(results)
    assert speed.reached and speed.found == "1.20" and memory.reached and memory.found == "0.60"
    ours, reference, missing = dense_backbones.cells(results)
    assert ours == ["ViG-H-T", "30.0", "66.7", "600", "1.20", "0.60"]
    assert reference[-2:] == ["1.00", "1.00"] and missing[:2] == ["ViG-H-B", "out of memory"]
    results["ViG-H-T"] = entry(20.0, 800)
    assert [x.reached for x in dense_backbones.targets(results)] == [False, False]
    for name in ("ViG-H-T", "Swin-T"):
        (target,) = dense_backbones.targets(results | {name: {"missing": "failed: no"}})
        assert target.reached is None


@pytest.mark.parametrize("broken", [False, True])
def test_run(clock, monkeypatch, tmp_path, broken):  # noqa: F811
    """Small models in the places of all; the reference takes part in every group."""
    built = []

    def build(name, size):
        built.append(name)
        if broken and name == "ViG-S":
            raise RuntimeError("no such thing")
        return vig_mm.HierViG(embed_dims=16, depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1))

    monkeypatch.setattr(dense_backbones, "build", build)
    monkeypatch.setattr(dense_backbones, "find_spec", lambda name: True)
    out = tmp_path / "dense.json"
    ran = dense_backbones.benchmark(clock, str(out), Budget(None), size=(32, 48), batch=2)
    assert ran != broken
    modes = json.loads(out.read_text())["results"]
    assert list(modes) == ["training", "inference"]
    assert built.count("Swin-T") == 8 and built.count("ViG-B") == 2
    for results in modes.values():
        assert list(results) == list(dense_backbones.MODELS)
        for name, found in results.items():
            if broken and name == "ViG-S":
                assert found["missing"].startswith("failed: RuntimeError: no such thing")
            else:
                assert found["images_per_s"] == pytest.approx(2 / found["median"])
                assert found["peak_bytes"] > 3 * 4 * 2 * 3 * 32 * 48 / 6
    table = out.with_suffix(".md").read_text()
    assert "ViG-H-T training" in table and "Swin-T inference" in table


def test_the_models_give_maps():
    pytest.importorskip("timm")
    with torch.no_grad():
        for name in ("Swin-T", "ConvNeXt-T"):
            assert len(dense_backbones.build(name, (64, 96))(torch.zeros(1, 3, 64, 96))) == 4
    ours = dense_backbones.build("ViG-H-T", (64, 96)).to("meta")
    assert ours.layers[0].blocks[0].op.backend == "triton"
    maps = ours(torch.empty(1, 3, 64, 96, device="meta"))
    assert [x.shape[1] for x in maps] == [96, 192, 384, 768]


def test_needs_a_gpu(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr("sys.argv", ["dense_backbones.py"])
    with pytest.raises(SystemExit):
        dense_backbones.main()
    assert "CUDA" in capsys.readouterr().err
