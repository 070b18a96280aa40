"""Public and mm checkpoints: what loads, what is refused, what is said about it."""

import argparse
import os
import random
import runpy
import sys
import threading
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from golden import public_state
from mmpretrain.registry import MODELS

import vig_mm
from vig_mm.checkpoints.conversion import (
    is_public,
    prepare_checkpoint,
    to_backbone,
    to_classifier,
    to_public,
)
from vig_mm.checkpoints.reading import CheckpointError, check_numbers, read_checkpoint, weights

CONVERT = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
TINY = dict(vig_tiny=("ViG", {}), vig_h_tiny=("HierViG", dict(out_indices=(3,))))


@cache
def drawn(model):
    """The public state dict of a tiny model, in float32."""
    return {k: x.float() for k, x in public_state(model).items()}


def public_file(path, model):
    torch.save({"model": drawn(model)}, path)
    return drawn(model)


@pytest.fixture(params=TINY)
def public(request):
    """The name of a tiny model and its public state dict."""
    return request.param, drawn(request.param)


def pretrained(name, path, **kwargs):
    family, defaults = TINY[name]
    cfg = dict(type="Pretrained", checkpoint=str(path))
    backbone = getattr(vig_mm, family)(**{**defaults, **kwargs}, init_cfg=cfg)
    backbone.init_weights()
    return backbone


def forms(state):
    """Every form in which the same weights may stand in a file."""
    other = {k: torch.zeros_like(x) for k, x in state.items()}
    classifier, backbone = to_classifier(state), to_backbone(state)
    detector = {f"backbone.{k}": x for k, x in backbone.items()} | {"neck.w": torch.ones(1)}
    return {
        "public model": {"model": state, "args": argparse.Namespace(lr=1.0), "epoch": 3},
        "public model_ema": {"model": other, "model_ema": state},
        "public from DDP": {"model": {f"module.{k}": x for k, x in state.items()}},
        "mm classifier": {"state_dict": classifier, "meta": {}},
        "mm detector": {"state_dict": detector, "meta": {}},
        "mm backbone": {"state_dict": backbone},
        "bare backbone": backbone,
    }


@pytest.mark.parametrize("form", list(forms({})))
def test_every_form_loads(public, form, tmp_path):
    name, state = public
    torch.save(forms(state)[form], tmp_path / "x.pth")
    loaded = pretrained(name, tmp_path / "x.pth").state_dict()
    expected = to_backbone(state)
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[k], expected[k]) for k in loaded)


def test_round_trip_of_names(public):
    _, state = public
    for form in (to_classifier(state), to_backbone(state)):
        back = to_public(form)
        assert all(torch.equal(back[k], state[k]) for k in back)
    assert set(to_public(to_classifier(state))) == set(state)


def test_dense_outputs_start_fresh_and_it_is_said(tmp_path, log):
    state = public_file(tmp_path / "x.pth", "vig_h_tiny")
    backbone = pretrained("vig_h_tiny", tmp_path / "x.pth", out_indices=(0, 3))
    assert torch.equal(backbone.norm0.weight, torch.ones(96))
    assert torch.equal(backbone.norm3.weight, state["classifier.norm.weight"])
    assert "output norms that start fresh: norm0.weight, norm0.bias" in log.text
    assert "loaded 198 of 200 backbone weights" in log.text


def test_truncated_backbone_takes_a_longer_file(tmp_path):
    """Stages after the last output are not built; the file may have them."""
    state = public_file(tmp_path / "x.pth", "vig_h_tiny")
    backbone = pretrained("vig_h_tiny", tmp_path / "x.pth", out_indices=(0, 1))
    key = "layers.1.blocks.1.op.qkv_proj.weight"
    assert torch.equal(backbone.state_dict()[key], state[key])


def test_missing_weights_are_named(tmp_path, log):
    state = dict(drawn("vig_tiny"))
    del state["blocks.3.attn.g_proj.bias"], state["pos_embed"]
    torch.save({"model": state}, tmp_path / "x.pth")
    pretrained("vig_tiny", tmp_path / "x.pth")
    (warning,) = (r.getMessage() for r in log.records if r.levelname == "WARNING")
    assert all(x in warning for x in ("MISSING", "blocks.3.attn.g_proj.bias", "pos_embed"))


def test_pos_embed_is_resized(tmp_path):
    state = public_file(tmp_path / "x.pth", "vig_tiny")
    backbone = pretrained("vig_tiny", tmp_path / "x.pth", img_size=512)
    expected = torch.nn.functional.interpolate(
        state["pos_embed"].view(1, 14, 14, 192).permute(0, 3, 1, 2), size=(32, 32), mode="bicubic"
    )
    torch.testing.assert_close(
        backbone.pos_embed.data, expected.permute(0, 2, 3, 1).reshape(1, 1024, 192)
    )
    # and through any loader: a whole classifier's state dict
    other = MODELS.build(dict(type="vig_mm.ViG", img_size=512))
    other.load_state_dict(to_backbone(state))
    torch.testing.assert_close(other.pos_embed, backbone.pos_embed)


def test_prefix(tmp_path):
    state = drawn("vig_tiny")
    torch.save({"state_dict": {f"student.{k}": x for k, x in state.items()}}, tmp_path / "x.pth")
    cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "x.pth"), prefix="student")
    backbone = vig_mm.ViG(init_cfg=cfg)
    backbone.init_weights()
    assert torch.equal(backbone.pos_embed, state["pos_embed"])


@pytest.mark.parametrize(
    "name, changes, source, message",
    [
        ("vig_tiny", dict(embed_dims=96), "vig_tiny", r"size.*embed_dims=96.*196, 192\).*arch"),
        ("vig_h_tiny", dict(depths=(2, 2, 3, 2)), "vig_h_tiny", "size.*not in.*layers.2.blocks.3"),
        ("vig_h_tiny", {}, "vig_tiny", "^nothing.*fits HierViG.*pos_embed"),
    ],
)
def test_another_model_is_refused(name, changes, source, message, tmp_path):
    public_file(tmp_path / "x.pth", source)
    with pytest.raises(CheckpointError, match=message):
        pretrained(name, tmp_path / "x.pth", **changes)


ONES = {"w": torch.ones(2)}
ADAM = {"state": {0: {"exp_avg": torch.ones(2)}}}


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"net": ONES}, r"the keys 'net'\. .* in checkpoint\['net'\]: save .*'model': checkpoint"),
        ({"ema": {"model": ONES}, "epoch": 3}, r"in checkpoint\['ema'\]\['model'\]: save"),
        ({"optimizer": ADAM, "ema": ONES}, r"There are tensors in checkpoint\['ema'\]: save"),
        ({"state_dict": {}, "meta": {}}, "'state_dict' is empty. Give a file"),
        ({"state_dict": {"w": 1.0}}, "'state_dict' holds float, no tensors. Give a file"),
        ({"state_dict": None}, "the keys 'state_dict'. Give a file"),
        ({0: torch.ones(2)}, "1 of its 1 tensors have no name but 0"),
        ({"state_dict": {**ONES, 7: torch.ones(2)}}, "1 of its 2 tensors have no name but 7"),
    ],
    ids=[
        "other key",
        "nested",
        "optimizer",
        "empty",
        "numbers",
        "none",
        "bare list",
        "one without a name",
    ],
)
def test_no_weights_is_one_message(content, reason):
    with pytest.raises(CheckpointError, match=f"^'x.pth': .*{reason}"):
        weights(content, path="x.pth")


UNFIT = {  # besides those of tests/test_checks/test_unfit_weights.py
    "infinity": (torch.tensor([1.0, float("inf")]), "1 of its .* hold NaN or infinity: weight"),
    "too large": (torch.full((2,), 1e300, dtype=torch.float64), "hold NaN or infinity: weight"),
    "complex": (torch.ones(2, dtype=torch.complex64), r"weight \(torch.complex64\)"),
    "sparse": (torch.ones(2).to_sparse(), r"weight \(torch.sparse_coo\)"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_weights_must_be_finite_numbers(kind):
    value, reason = UNFIT[kind]
    norm = torch.nn.BatchNorm1d(2)
    state = {**norm.state_dict(), "weight": value}
    with pytest.raises(CheckpointError, match=f"'x.pth' cannot be used: .*{reason}"):
        check_numbers(state, dict(norm.named_parameters()), "x.pth")


def test_backbone_takes_numbers_only(tmp_path):
    """The grid of positions, too, which is resized before it is loaded."""
    state = vig_mm.ViG(depth=1).state_dict()
    state["pos_embed"] = state["pos_embed"].to(torch.int8)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="x.pth' cannot be used: 1 of its .*: pos_embed"):
        pretrained("vig_tiny", tmp_path / "x.pth", depth=1, img_size=64)


class _Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def write_unfit(kind: str, path: Path, marker: Path) -> None:
    """A file of this kind, which is no checkpoint; loading it must not create the marker."""
    state = {"model": {"a": torch.ones(1000)}}
    if kind == "directory":
        path.mkdir()
    elif kind.startswith("truncated"):
        torch.save(state, path, _use_new_zipfile_serialization="old" not in kind)
        path.write_bytes(path.read_bytes()[:-500])
    elif kind.startswith("payload"):
        state["optimizer"] = _Payload(marker)
        torch.save(state, path, _use_new_zipfile_serialization="old" not in kind)
    elif kind == "whole model":
        torch.save(torch.nn.Linear(1, 1), path)
    elif kind == "TorchScript":
        torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)).save(path)
    elif kind != "missing":
        content = {"web page": "\n<!DOCTYPE html>", "Git LFS": "version https://git-lfs.github.com"}
        path.write_text(content.get(kind, ""))


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("missing", "is not a file"),
        ("directory", "is not a file"),
        ("empty", "not a readable torch checkpoint: it is empty"),
        ("truncated", "it is truncated or another kind of file"),
        ("truncated, old format", "it is truncated or another kind of file"),
        ("web page", "it is a web page"),
        ("Git LFS", "`git lfs pull`"),
        ("TorchScript", "it is a TorchScript program"),
        ("whole model", "asks Python for torch.nn.modules.linear.Linear.*save its state_dict"),
        ("payload", "cannot be loaded safely: it asks Python for posix.system.*nothing.* was run"),
        ("payload, old format", "cannot be loaded safely: it asks Python for posix.system"),
    ],
)
def test_files_that_are_no_checkpoints(kind, reason, tmp_path):
    path, marker = tmp_path / "x.pth", tmp_path / "executed"
    write_unfit(kind, path, marker)
    with pytest.raises(CheckpointError, match=f"x.pth.*{reason}") as caught:
        read_checkpoint(path)
    assert not marker.exists()
    # torch's own message advises to switch the protection off
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_broken_bytes_are_one_kind_of_error(zipped, tmp_path):
    """Whatever the unpickler stumbles over; what it can still read may well be a dictionary."""
    path = tmp_path / "x.pth"
    state = {"state_dict": {"a": torch.ones(3), "b": torch.ones(2).half()}, "meta": {"epoch": 1}}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            assert isinstance(read_checkpoint(path), dict)
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_prepare_checkpoint(public, tmp_path):
    name, state = public
    public_file, mm_file = tmp_path / "vig.pth", tmp_path / "mm.pth"
    torch.save({"model": state}, public_file)
    torch.save({"state_dict": to_classifier(state)}, mm_file)
    assert prepare_checkpoint(str(mm_file), str(tmp_path / "work")) == str(mm_file)
    converted = prepare_checkpoint(str(public_file), str(tmp_path / "work"))
    assert Path(converted).parent == tmp_path / "work"
    assert set(torch.load(converted)["state_dict"]) == set(to_classifier(state))


def test_prepare_checkpoint_leaves_other_models_alone(tmp_path):
    """A model whose head has the name of timm's, such as timm's own ConvNeXt."""
    state = {"stages.0.weight": torch.ones(1), "head.fc.weight": torch.ones(1)}
    for content in (state, {"state_dict": state}):
        torch.save(content, tmp_path / "x.pth")
        file = str(tmp_path / "x.pth")
        assert prepare_checkpoint(file, str(tmp_path / "work")) == file


@pytest.mark.parametrize("prefix", ["", "module."])
def test_prepare_checkpoint_keeps_the_names_of_an_mm_model(prefix, public, tmp_path):
    """Its weights under a public file's key."""
    _, state = public
    mm = {**to_classifier(state), "neck.w": torch.ones(1)}
    content = {"model": {prefix + name: x for name, x in mm.items()}}
    assert not is_public(content) and is_public({"model": state})
    torch.save(content, tmp_path / "x.pth")
    written = torch.load(prepare_checkpoint(tmp_path / "x.pth", tmp_path / "work"))["state_dict"]
    assert set(written) == set(mm) and all(torch.equal(written[name], mm[name]) for name in mm)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, its address on this machine, and the list of what was asked for."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    yield folder, f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


def test_an_address_is_fetched_once_and_read_safely(served, tmp_path):
    folder, address, requests = served
    torch.save({"model": {"head.weight": torch.ones(2)}}, folder / "vig.pth")
    for _ in range(2):
        assert read_checkpoint(f"{address}/vig.pth?download=1")["model"]["head.weight"].sum() == 2
    assert len(requests) == 1
    converted = prepare_checkpoint(f"{address}/vig.pth", str(tmp_path / "work"))
    assert set(torch.load(converted)["state_dict"]) == {"head.fc.weight"}

    torch.save({"model": _Payload(tmp_path / "executed")}, folder / "payload.pth")
    with pytest.raises(CheckpointError, match="safely"):
        read_checkpoint(f"{address}/payload.pth")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(CheckpointError, match="none.pth.*cannot be downloaded.*404"):
        read_checkpoint(f"{address}/none.pth")
    with pytest.raises(CheckpointError, match="only files and http"):
        read_checkpoint("petrel://bucket/x.pth")


def test_convert_tool(tmp_path, monkeypatch):
    """There and back; what has no public form is one message."""

    def convert(*names: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(CONVERT), *(str(tmp_path / name) for name in names)])
        runpy.run_path(str(CONVERT), run_name="__main__")

    state = public_file(tmp_path / "src.pth", "vig_h_tiny")
    convert("src.pth", "mm.pth")
    assert set(torch.load(tmp_path / "mm.pth")["state_dict"]) == set(to_classifier(state))
    convert("mm.pth", "back.pth")
    restored = torch.load(tmp_path / "back.pth")["model"]
    assert set(restored) == set(state)
    assert all(torch.equal(restored[k], state[k]) for k in state)

    detector = {"backbone.a": torch.ones(1), "neck.b": torch.ones(1)}
    torch.save({"state_dict": detector}, tmp_path / "detector.pth")
    for src, word in (("missing.pth", "missing.pth"), ("detector.pth", "neck.b")):
        with pytest.raises(SystemExit, match=f"^error: .*{word}"):
            convert(src, "out.pth")
        assert not (tmp_path / "out.pth").exists()
