"""ONNX, torch.export and torch.compile give what the models give, at sizes they never saw.

ViGAdapter is not here: its export alone takes as long as all of these (docs/deploy.md).
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
import onnxruntime
from mmengine.config import Config

import vig_mm
from vig_mm.errors import UsageError
from vig_mm.export.onnx_export import ExportError, compare_onnx, export_onnx
from vig_mm.export.onnx_ops import TRANSLATIONS
from vig_mm.kernels import bidirectional_gla

ROOT = Path(__file__).resolve().parents[1]
DYNAMIC = ["batch", "height", "width"]
FOUR_BANDS = ROOT / "configs/mmpretrain/vig-h-mini_digits-4bands.py"
SEGMENTOR = ROOT / "configs/mmseg/vig-h-mini_upernet_digits.py"
DETECTOR = ROOT / "configs/mmdet/mask-rcnn_vig-h-mini_fpn_digits.py"
BACKBONES = {
    "ViG": dict(embed_dims=32, depth=2, num_heads=2, mixer_act=True, out_indices=(0, 1)),
    "HierViG": dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)),
}


def build(family, **kwargs):
    torch.manual_seed(0)
    backbone = getattr(vig_mm, family)(**{**BACKBONES[family], **kwargs})
    backbone.init_weights()
    for parameter in backbone.parameters():  # zeros, among them the gates' biases, would hide much
        parameter.data += 0.02 * torch.randn_like(parameter)
    return backbone.eval()


def names_of_operators(path):
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    return {(node.domain, node.op_type) for node in model.graph.node}


class Operator(nn.Module):
    def forward(self, q, k, v, gate_f, gate_b):  # torch 2.9 cannot export *inputs
        return bidirectional_gla(q, k, v, gate_f, gate_b)


def gla_inputs(tokens, batch, gate_scale, gate_shift):
    generator = torch.Generator().manual_seed(tokens)
    q, k, gate_f, gate_b = (torch.randn(batch, tokens, 3, 8, generator=generator) for _ in range(4))
    v = torch.randn(batch, tokens, 3, 12, generator=generator)
    return [q, k, v, *(gate_scale * gate + gate_shift for gate in (gate_f, gate_b))]


@pytest.fixture(scope="module")
def operator_session(tmp_path_factory):
    path = tmp_path_factory.mktemp("operator") / "operator.onnx"
    auto = torch.export.Dim.AUTO
    shapes = tuple({0: auto, 1: auto} for _ in range(5))
    program = torch.export.export(
        Operator(), tuple(gla_inputs(5, 2, 3.0, 0.0)), dynamic_shapes=shapes
    )
    options = dict(dynamo=True, verbose=False, custom_translation_table=TRANSLATIONS)
    torch.onnx.export(program, **options).save(path)
    assert {domain for domain, _ in names_of_operators(path)} == {""}
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shift", [-1e30, -500.0, -50.0, 0.0, 8.0, 50.0, 500.0])
def test_operator_is_exact_for_any_gate(operator_session, shift):
    """Traced with 5 tokens; chunks have 32. A large scale: closed and open gates side by side."""
    for tokens, scale in *((n, 3.0) for n in (1, 2, 31, 32, 33, 64, 97, 211)), (150, 1000.0):
        inputs = gla_inputs(tokens, 1 + tokens % 2, scale, shift)
        expected = bidirectional_gla(*(x.double() for x in inputs), backend="reference")
        feed = zip((one.name for one in operator_session.get_inputs()), inputs, strict=True)
        (found,) = operator_session.run(None, {name: x.numpy() for name, x in feed})
        error = (torch.from_numpy(found) - expected).norm() / expected.norm()
        assert error < 2e-6, tokens


class RoundsAndPools(nn.Module):
    def forward(self, x):
        height, width = (-(-size // 4) for size in x.shape[2:])
        return tuple(nn.functional.adaptive_avg_pool2d(x, n) for n in ((1, 2), 6)) + (
            x[:, :, :height, :width].clone(),
        )


def test_rounding_up_and_pooling_with_dynamic_sizes(tmp_path):
    model = RoundsAndPools().eval()
    assert export_onnx(model, tmp_path / "x.onnx", (20, 24), ["a", "b", "c"]) == DYNAMIC
    shapes = [(1, 20, 24), (2, 5, 4), (1, 13, 41)]
    for errors in compare_onnx(model, tmp_path / "x.onnx", shapes):
        assert max(errors.values()) < 1e-6


@pytest.mark.parametrize("family", BACKBONES)
def test_backbone_in_onnxruntime(tmp_path, family):
    backbone = build(family)
    names = [f"map{i}" for i in range(len(backbone.out_indices))]
    path = tmp_path / "backbone.onnx"
    assert export_onnx(backbone, path, (72, 104), names) == DYNAMIC
    assert {domain for domain, _ in names_of_operators(path)} == {""}
    # 224x224 is the grid of ViG's position embedding, 29x59 gives prime numbers of tokens
    shapes = [(1, 224, 224), (3, 61, 101), (2, 29, 59), (1, 200, 40)]
    for errors in compare_onnx(backbone, path, shapes):
        assert list(errors) == names
        assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("family, traced", [("ViG", (224, 224)), ("HierViG", (72, 104))])
def test_backbone_through_torch_export(family, traced):
    """The operator stays whole, and no size that it is traced at is special: not the grid of a
    position embedding, nor one with few tokens."""
    two = dict(ViG={}, HierViG=dict(depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1)))
    backbone = build(family, **two[family])
    shapes = ({axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)},)
    program = torch.export.export(backbone, (torch.randn(2, 3, *traced),), dynamic_shapes=shapes)
    operators = [n for n in program.graph.nodes if "vig_mm.bidirectional_gla" in str(n.target)]
    assert len(operators) == 2
    exported = program.module()
    with torch.no_grad():
        for batch, height, width in ((2, 61, 101), (3, 224, 224), (1, 400, 368)):
            x = torch.randn(batch, 3, height, width)
            for got, expected in zip(exported(x), backbone(x), strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_backbone_compiled_by_inductor(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # compile for real
    torch._dynamo.reset()
    backbone = build("HierViG", depths=(1,), num_heads=(2,), out_indices=0)
    compiled = torch.compile(backbone, fullgraph=True, backend="inductor")
    x = torch.randn(1, 3, 61, 72)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)[0], backbone(x)[0], rtol=0, atol=1e-5)


@pytest.fixture
def tool(run_tool, load_tool, default_scope, tmp_path):
    """`tool(*arguments)` runs tools/export_onnx.py in a folder of its own; what it printed."""
    call = partial(run_tool, "export_onnx", cwd=tmp_path)
    call.module = load_tool("export_onnx")
    return call


# a backbone of one block
CUT = {"depths": [1], "num_heads": [1], "out_indices": [0]}
CUT = {f"model.backbone.{key}": value for key, value in CUT.items()}


def cfg_options(changes):
    return ["--cfg-options", *(f"{key}={value}" for key, value in changes.items())]


def metadata(path):
    return {x.key: json.loads(x.value) for x in onnx.load(path).metadata_props}


def test_classifier_with_a_checkpoint(tool, tmp_path):
    """Of images with four bands."""
    torch.manual_seed(1)
    cfg, changes = Config.fromfile(FOUR_BANDS), CUT | {"model.head.in_channels": 32}
    cfg.merge_from_dict(changes)
    model, _ = tool.module.build_model(cfg, "none")
    classes = [str(i) for i in range(10)]
    content = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes)))
    torch.save(content, tmp_path / "trained.pth")
    arguments = (FOUR_BANDS, "trained.pth", "a/b.onnx", "--size", 64, 96)
    printed = tool(*arguments, *cfg_options(changes))
    assert "dynamic: batch, height, width" in printed
    (errors,) = compare_onnx(model, tmp_path / "a/b.onnx", [(2, 45, 83)])  # bands: 4
    assert errors["logits"] < 1e-4
    stated = metadata(tmp_path / "a/b.onnx")
    assert len(stated["mean"]) == stated["channels"] == 4 and stated["classes"] == classes


def test_segmentor(tool, tmp_path):
    """It gives what mmseg gives."""
    model, _ = tool.module.build_model(Config.fromfile(SEGMENTOR), "none")
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "trained.pth")
    printed = tool(SEGMENTOR, "trained.pth", "seg.onnx", "--size", 64, 96)
    assert "dynamic: batch, height, width" in printed and "logits" in printed
    stated = metadata(tmp_path / "seg.onnx")
    assert stated == dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], channels="RGB"
    )
    model.forward = lambda image: model.encode_decode(image, [dict(img_shape=image.shape[2:])])
    (errors,) = compare_onnx(model, tmp_path / "seg.onnx", [(1, 77, 90)])
    assert errors["logits"] < 1e-4


def test_backbone_only(tool, tmp_path):
    """Of a detector, whose backbone is cut to one block; and the report of several exports."""
    report = tmp_path / "all.json"
    others = [dict(config=config, part="backbone") for config in ("z.py", "!.py")]
    report.write_text(json.dumps({"exports": others}))
    arguments = (DETECTOR, "none", "backbone.onnx", "--backbone-only", "--report", "all.json")
    printed = tool(*arguments, "--size", 64, 96, *cfg_options(CUT))
    assert "outputs map0" in printed and "dynamic: batch, height, width" in printed
    path = tmp_path / "backbone.onnx"
    image = torch.randn(1, 3, 77, 90).numpy()
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"image": image})
    assert found.shape == (1, 32, 20, 23)
    before, entry, after = json.loads(report.read_text())["exports"]
    assert (before["config"], after["config"]) == ("!.py", "z.py")
    assert entry["config"] == DETECTOR.as_posix() and entry["part"] == "backbone"
    assert entry["bytes"] == path.stat().st_size and entry["weights"] == "fresh"
    assert entry["dynamic"] == ["batch", "height", "width"]
    shapes = [check["shape"] for check in entry["checks"]]
    assert shapes == [[2, 64, 96], [1, 125, 77], [3, 47, 128]]
    for check in entry["checks"]:
        assert f"map0 {check['differences']['map0']:.1e}" in printed
    tool.module.add_to_report(report, dict(entry, bytes=1))  # takes the entry's place
    sizes = [export.get("bytes") for export in json.loads(report.read_text())["exports"]]
    assert sizes == [None, 1, None]


def test_table_of_the_page_is_that_of_the_reports(load_tool):
    table = load_tool("analysis_tools/model_table").export_table
    exports = json.loads((ROOT / "docs/export.json").read_text())["exports"]
    assert table(exports) in (ROOT / "docs/deploy.md").read_text()
    for export in exports:
        assert (ROOT / export["config"]).is_file() and len(export["dynamic"]) == 3
        assert all(x <= 1e-4 for check in export["checks"] for x in check["differences"].values())
    worst = dict(exports[0], checks=[dict(shape=[1, 2, 3], differences=dict(a=2e-5, b=3e-6))])
    assert "2.0e-05" in table([worst]) and "1 x 2x3" in table([worst])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((DETECTOR, "none", "x.onnx"), "MaskRCNN.*RoIAlign.*--backbone-only"),
        ((FOUR_BANDS, "none", "x.pt"), r"\.onnx.*x\.pt"),
        ((FOUR_BANDS, "none", "x.onnx", "--size", "8", "64"), "--size 8 64.*at least 64"),
        (("no.py", "none", "x.onnx"), "no.py.*not a file"),
    ],
    ids=["detector", "name", "size", "config"],
)
def test_bad_input(tool, tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        tool(*arguments)
    assert not list(tmp_path.glob("*.onnx"))


def test_a_model_that_cannot_be_traced(tmp_path):
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"Branches at 32x48: .*data-dependent"):
        export_onnx(Branches().eval(), tmp_path / "x.onnx", (32, 48), ["y"])
    assert not list(tmp_path.iterdir())
