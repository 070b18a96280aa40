"""tools/analysis_tools/vis_*.py: where a hand-made model looks is known."""

import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")
pytest.importorskip("pytorch_grad_cam")

from known_cases import ROOT
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from pytorch_grad_cam import GradCAM

from vig_mm.errors import UsageError
from vig_mm.kernels.gla.naive import reference_bidirectional_gla
from vig_mm.models import HierViG

sys.path.insert(0, str(ROOT / "tools/analysis_tools"))

import vis_cam as cam
import vis_gates
import vis_receptive_field as erf

pytestmark = pytest.mark.usefixtures("default_scope")
CONFIG = ROOT / "configs/mmpretrain/vig-h-mini_digits.py"
SIDE = 64


def built(scope: str, model: dict) -> nn.Module:
    torch.manual_seed(0)
    with MODELS.switch_scope_and_registry(scope) as registry:
        return registry.build(ConfigDict(model)).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of the digits classifier (random weights), and a picture."""
    folder = tmp_path_factory.mktemp("inside")
    model = built("mmpretrain", Config.fromfile(CONFIG).model)
    model.init_weights()
    meta = dict(dataset_meta=dict(classes=[f"class{i}" for i in range(10)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / "weights.pth")
    noise = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return folder


def differ(path) -> bool:
    """Whether a picture shows something."""
    return np.asarray(Image.open(path).convert("L"), float).std() > 10


# Class activation maps ---------------------------------------------------------------------------


class CornerBackbone(nn.Module):
    """The colours of each 8x8 pixels; its layer `last` may give tokens or channels last.

    With the layout "two outputs" the second is one that no head takes.
    """

    def __init__(self, layout: str = "map") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 8, stride=8, bias=False)
        self.last = nn.Identity()
        self.layout = layout
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8) / 64)

    def forward(self, x):
        x = self.conv(x)
        if self.layout == "tokens":
            return (self.last(x.flatten(2).mT).mT.unflatten(2, (8, 8)),)
        if self.layout == "channels last":
            return (self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),)
        return (self.last(x), x + 1) if self.layout == "two outputs" else (self.last(x),)


class Corner(nn.Module):
    """A classifier in mm's manner; class 1 sees red in the upper left quarter, class 0 nothing."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.backbone = CornerBackbone(layout)

    def forward(self, x, mode):
        assert mode == "tensor" and not self.training
        corner = self.backbone(x)[0][:, 0, :4, :4].mean(dim=(1, 2))
        return torch.stack((0 * corner, corner), dim=1)


def corner_subject(layout: str = "map") -> cam.Subject:
    """Red in the upper left corner, green in the lower right one."""
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[:24, :24, 0] = picture[40:, 40:, 1] = 255
    inputs = torch.from_numpy(picture / 255).float().permute(2, 0, 1)[None]
    classes = ["nothing", "corner"]
    return cam.Subject(Corner(layout).eval(), "mmpretrain", picture, inputs, None, classes)


@pytest.mark.parametrize("layout", ["map", "tokens", "channels last"])
@pytest.mark.parametrize(
    "method, name", [(cam.GRAD, "backbone.last"), (cam.HIRES, "-1"), (cam.EIGEN, "0")]
)
def test_the_corner_that_counts_lights_up(layout, method, name):
    subject = corner_subject(layout)
    if method == cam.EIGEN:  # what stands out, high or low
        subject.inputs[:, :, 24:] = 0
        subject.inputs *= -1 if layout == "tokens" else 1
    probe = cam.Probe(subject, None if method == cam.EIGEN else 0)
    found = cam.cam_map(method, probe, probe.find(name)[1], subject.inputs, 1)
    assert found.shape == (SIDE, SIDE) and found[:20, :20].min() > 0.9
    assert found[32:].max() < 0.05 and found[:, 32:].max() < 0.05


def test_cam_picture(trained, tmp_path, run_tool):
    args = [trained / "noise.png", CONFIG, trained / "weights.pth", "--class", "class3"]
    layers = ["0", "backbone.norm3", "backbone.layers.2.blocks.1"]
    files = ("--layers", *layers, "--out", "a/cam.png")
    run_tool("analysis_tools/vis_cam", *args, *files, cwd=tmp_path)
    with Image.open(tmp_path / "a/cam.png") as picture:
        assert picture.width > 4 * 320 and picture.height > 3 * 320  # image and layers; methods
    assert differ(tmp_path / "a/cam.png")


# Of detectors and segmentors: real heads that know red from green


def planted_detector() -> nn.Module:
    """RetinaNet without a neck: an object in each cell, of class 0 where it is red, 1 if green."""
    anchors = dict(scales=[1], ratios=[1.0], strides=[8], center_offset=0.5)
    head = dict(num_classes=2, in_channels=3, feat_channels=3, stacked_convs=0)
    head["anchor_generator"] = dict(type="AnchorGenerator", **anchors)
    few = dict(nms_pre=100, score_thr=0.05, max_per_img=99)
    few["nms"] = dict(type="nms", iou_threshold=0.5)
    parts = dict(neck=None, bbox_head=dict(type="RetinaHead", **head), test_cfg=few)
    model = built("mmdet", dict(type="RetinaNet", backbone=dict(type=CornerBackbone), **parts))
    head = model.bbox_head
    nn.init.zeros_(head.retina_cls.weight)
    nn.init.zeros_(head.retina_reg.weight)
    nn.init.constant_(head.retina_cls.bias, -2)
    for label in (0, 1):
        nn.init.constant_(head.retina_cls.weight[label, label, 1, 1], 4)
    return model


def planted_segmentor() -> nn.Module:
    """One 1x1 convolution: class 0 is red, class 1 green, class 2 all else."""
    head = dict(type="FCNHead", num_convs=0, kernel_size=1, concat_input=False, dropout_ratio=0)
    head |= dict(in_channels=3, channels=3, in_index=0, num_classes=3)
    parts = dict(backbone=dict(type=CornerBackbone), decode_head=head)
    parts["test_cfg"] = dict(mode="slide", crop_size=(32, 32), stride=(16, 16))
    model = built("mmseg", dict(type="EncoderDecoder", **parts))
    conv = model.decode_head.conv_seg
    with torch.no_grad():
        conv.weight.copy_(torch.diag(torch.tensor([4.0, 4, 0]))[:, :, None, None])
        conv.bias.copy_(torch.tensor([0.0, 0, 2]))
    return model


def subject_of(scope: str, model: nn.Module, classes: list[str]) -> cam.Subject:
    """With a red corner above and a green one below."""
    from mmdet.structures import DetDataSample

    size = (SIDE, SIDE)
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    return replace(corner_subject(), scope=scope, model=model, sample=sample, classes=classes)


def planted(scope: str) -> cam.Subject:
    if scope == "mmdet":
        return subject_of(scope, planted_detector(), ["red", "green"])
    return subject_of(scope, planted_segmentor(), ["red", "green", "nothing"])


@pytest.mark.parametrize("method", [cam.GRAD, cam.HIRES])
@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_objects_of_the_wanted_class_light_up(scope, method):
    subject = planted(scope)
    probe = cam.Probe(subject, 0.3)
    red, green = (cam.cam_map(method, probe, probe.taps[0], subject.inputs, c) for c in (0, 1))
    assert red[:20, :20].min() > 0.6 and max(red[32:].max(), red[:, 32:].max()) < 0.05
    assert green[44:, 44:].min() > 0.6 and max(green[:32].max(), green[:, :32].max()) < 0.05


@torch.no_grad()
def test_scores_are_sums_over_detections_or_pixels():
    """Nine cells are red, and nine green, one of these half so, which is scored 0.5."""
    subject, sure = planted("mmdet"), 1 / (1 + np.exp(-2))
    subject.inputs[:, :, 40:48, 40:48] /= 2
    for score_thr, green in ((0.3, 8 * sure + 0.5), (0.6, 8 * sure)):
        scores, amounts = cam.class_scores(subject, subject.inputs, score_thr)
        assert scores.tolist() == pytest.approx([9 * sure, green])
        assert amounts.tolist() == pytest.approx([sure, sure])

    subject = planted("mmseg")  # padding does not count, and a sliding window is not used
    subject = replace(subject, picture=subject.picture[:40])
    scores, amounts = cam.class_scores(subject, subject.inputs, 0.3)
    logits = subject.model.encode_decode(subject.inputs, [subject.sample.metainfo])[0, :, :40]
    for label in (0, 1, 2):
        here = logits.argmax(dim=0) == label
        assert float(scores[label]) == pytest.approx(float(logits[label][here].sum()), rel=1e-5)
        assert float(amounts[label]) == pytest.approx(float(here.float().mean()))
    assert 0.2 < amounts[0] < 0.24 and amounts[1] == 0


@pytest.mark.parametrize("method", [cam.GRAD, cam.HIRES])
def test_a_layer_that_the_score_does_not_depend_on(method):
    subject = corner_subject("two outputs")
    probe = cam.Probe(subject, 0.0)
    first, second = (cam.cam_map(method, probe, tap, subject.inputs, 1) for tap in probe.taps)
    assert first.any() and not second.any()


def two_stage() -> cam.Subject:
    """A ViG with random weights in Mask R-CNN.

    What is detected does not change with the scores: all boxes are, with and without an object.
    """
    from mmengine.structures import InstanceData

    model = Config.fromfile(ROOT / "configs/mmdet/mask-rcnn_vig-h-mini_fpn_digits.py").model
    model.test_cfg.rcnn.update(score_thr=0, nms=dict(type="nms", iou_threshold=1.0))
    model.test_cfg.rcnn.update(max_per_img=9999)
    subject = subject_of("mmdet", built("mmdet", model), [str(i) for i in range(10)])
    for parameter in subject.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    boxes = [[0.0, 0, 30, 30], [20, 10, 60, 50], [5, 30, 64, 64]]
    subject.sample.proposals = InstanceData(bboxes=torch.tensor(boxes))
    return replace(subject, inputs=torch.randn(1, 3, SIDE, SIDE))


def test_grad_cam_weights_are_what_the_score_gains(monkeypatch):
    """A channel's weight is the slope of the score as that channel is raised everywhere."""
    subject, label, step = two_stage(), 2, 0.01
    probe = cam.Probe(subject, 0.0)
    tap, weigh, found, maps = probe.taps[1], GradCAM.get_cam_weights, [], []
    monkeypatch.setattr(
        GradCAM, "get_cam_weights", lambda *args: found.append(weigh(*args)) or found[0]
    )
    drawn = cam.cam_map(cam.GRAD, probe, tap, subject.inputs, label)
    weights = found[0][0]

    raised = torch.zeros(1, 64, 1, 1)
    tap.register_forward_hook(lambda module, args, output: maps.append(output) or output + raised)

    @torch.no_grad()
    def score(channel: int, by: float) -> float:
        raised.zero_()[0, channel] = by
        return float(probe(subject.inputs)[0, label])

    channels = np.abs(weights).argsort()[[-1, -4, -16, 0]]  # of large weights and a small one
    slopes = np.array([score(c, step) - score(c, -step) for c in channels]) / (2 * step)
    slopes /= maps[0].shape[2:].numel()
    np.testing.assert_allclose(slopes, weights[channels], atol=0.02 * np.abs(weights).max())
    assert np.abs(slopes).max() > 0.2 * np.abs(weights).max()

    expected = np.maximum((weights[:, None, None] * maps[0][0].numpy()).sum(axis=0), 0)
    expected = cv2.resize(expected / expected.max(), (SIDE, SIDE))
    assert expected.std() > 0.1
    np.testing.assert_allclose(drawn, expected / expected.max(), atol=1e-3)


def test_what_cannot_be_asked():
    """Above all maps of a class that there is nothing of."""
    subject, only_red, cut = planted("mmseg"), planted("mmdet"), planted("mmdet")
    nothing, black = (replace(x, inputs=0 * x.inputs) for x in (only_red, subject))
    only_red.inputs[:, 1] = 0
    cut.model.bbox_head.predict = torch.no_grad()(cut.model.bbox_head.predict)
    for asked, method, wanted, message in (
        (replace(subject, classes=["soil", "road"]), cam.GRAD, None, "gives 3 map.* for 2 classes"),
        (subject, cam.EIGEN, "red", "--class red has no meaning for Eigen-CAM"),
        (cut, cam.GRAD, None, "RetinaNet cuts its scores off"),
        (only_red, cam.GRAD, "green", "finds no green in this image, but red.*eigencam"),
        (nothing, cam.GRAD, None, "finds nothing in this image.*lower --score-thr"),
        (black, cam.HIRES, "0", "finds no red in this image, but nothing.*eigencam"),
    ):
        with pytest.raises(UsageError, match=message):
            cam.draw(asked, None, [method], wanted)
    subject = two_stage()
    del subject.sample.proposals
    subject.model.rpn_head.test_cfg.max_per_img = 5
    with pytest.raises(UsageError, match="calls this layer [45] times"):
        cam.draw(subject, ["rpn_head.rpn_cls"], [cam.GRAD], "2", score_thr=0)
    assert cam.draw(nothing, None, [cam.EIGEN], None).width > 2 * 320


# Receptive fields --------------------------------------------------------------------------------


class OneConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        return (self.conv(x),)


def test_one_convolution_sees_three_by_three():
    torch.manual_seed(0)
    (field,), (grid,) = erf.receptive_fields(OneConv(), torch.randn(3, 1, 3, 17, 17))
    assert grid == (17, 17)
    seen = np.zeros((17, 17), bool)
    seen[7:10, 7:10] = True
    assert ((field > 0) == seen).all()
    assert (centre := erf.middle(field)) == (8, 8)
    held = erf.extents(field, centre)
    assert held["99%"] == dict(side=3, area=9 / 289, share=9 / 289)
    assert held["30%"]["share"] < held["50%"]["share"] < held["99%"]["share"]


def test_extents_of_a_known_field():
    """Even over 20x20 pixels; squares are cut at the border."""
    held = erf.extents(np.ones((20, 20)), (0, 0))
    assert held["50%"] == dict(share=0.5, area=225 / 400, side=20)  # 29 would be more than there is
    assert held["30%"]["area"] == 121 / 400  # 11 x 11 pixels; 10 x 10 are too few
    assert erf.extents(np.ones((20, 20)), (10, 10))["50%"]["side"] == 15
    assert held["99%"]["area"] == 1


def test_every_output_has_a_field():
    torch.manual_seed(0)
    model = HierViG(embed_dims=16, depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1)).eval()
    images = torch.randn(1, 1, 3, SIDE, SIDE)
    fields, grids = erf.receptive_fields(model, images)
    assert grids == [(16, 16), (8, 8)]
    assert all(field.any() and np.isfinite(field).all() for field in fields)
    with pytest.raises(UsageError, match="out_type or out_indices"):
        erf.receptive_fields(lambda x: (x.flatten(2),), images)


def test_receptive_field_files(trained, tmp_path, run_tool):
    def run(*args):
        run_tool("analysis_tools/vis_receptive_field", CONFIG, *args, cwd=tmp_path)
        return json.loads((tmp_path / "receptive_field.json").read_text())

    pictures = ("--images", trained, "--size", 64, 96, "--count", 2)
    report = run(trained / "weights.pth", *pictures)
    assert differ(tmp_path / "receptive_field.png")
    assert report["images"] == 1 and report["inputs"] == "pictures"
    (output,) = report["outputs"]
    assert output["grid"] == [2, 3]
    assert 0 < output["holds"]["30%"]["share"] < output["holds"]["99%"]["share"] <= 1
    # random weights are those of the seed
    small = ("--size", 64, 64, "--count", 1, "--seed")
    assert run(*small, 0) == run(*small, 0) != run(*small, 1)


# Gates -------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_operator():
    """One value in one token, queries and keys 1: the operator's output is the weights."""
    # of 12 tokens, 2 heads of 2 channels, some nearly closed
    logits = 20 * torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0)).double()
    gates = vis_gates.Gates("x", (3, 4), 2, *map(vis_gates.log_alpha, logits))
    ones = torch.ones(1, 12, 4, 1, dtype=torch.float64)
    z_f, z_b = (z[None, :, :, None] for z in logits)
    for s in (0, 4, 11):
        v = torch.zeros_like(ones)
        v[:, s] = 1
        out = 2 * reference_bidirectional_gla(ones, ones, v, z_f, z_b)[0, :, :, 0]
        for t in range(12):
            expected = gates.seen_from(t)[s] * (2 if s == t else 1)
            torch.testing.assert_close(out[t], expected)
    for distance in (0, 1, 4, 11):
        forward, backward = (gates.reach(x, distance) for x in ("forward", "backward"))
        for s in range(12 - distance):
            torch.testing.assert_close(forward[s], gates.seen_from(s + distance)[s])
            torch.testing.assert_close(backward[s], gates.seen_from(s)[s + distance])


def test_half_life():
    logits = torch.tensor([0.0, 1e4]).repeat(40, 1)
    gates = vis_gates.Gates("x", (5, 8), 1, *map(vis_gates.log_alpha, (logits, -logits)))
    torch.testing.assert_close(gates.reach("forward", 16)[:, 0], torch.full((24,), 0.5).double())
    content = gates.report()["forward"]  # 16 ln 2 / ln 2; the other never closes
    assert content["half_life"] == [[16.0, None]]
    json.dumps(content, allow_nan=False)


def test_gates_are_those_of_the_layer():
    model = HierViG(embed_dims=16, depths=(1, 1), num_heads=(1, 2), out_indices=1).eval()
    model.extract_feat = model.forward
    for block in (stage.blocks[0] for stage in model.layers):
        # forward: channel i has logit i; backward: always closed
        nn.init.zeros_(block.op.gk_proj[0].weight)
        half = block.op.gk_proj[1].bias.shape[0] // 2
        block.op.gk_proj[1].bias.data = torch.cat((torch.arange(half), torch.full((half,), -1e4)))
    first, second = vis_gates.gates_of(model, torch.randn(1, 3, 32, 48))
    assert (first.hw, second.hw, second.heads) == ((8, 12), (4, 6), 2)
    expected = torch.sigmoid(torch.arange(16.0).double()).log() / 16
    torch.testing.assert_close(second.forward, expected.expand(24, 16))
    assert second.name == "layers.1.blocks.0.op"
    assert second.seen_from(0)[1:].max() < 1e-200 and second.seen_from(23).min() > 0
    with pytest.raises(UsageError, match="needs a ViG"):
        vis_gates.gates_of(OneConv(), torch.zeros(1, 3, 8, 8))
    places = {(0, 0): (0, 0), (47, 31): (7, 11), (4, 3): (0, 1), (3, 4): (1, 0)}
    for pixel, token in places.items():  # x and y to row and column
        assert vis_gates.token_at(pixel, (32, 48), (8, 12)) == token


def test_gates_files(trained, tmp_path, run_tool):
    args = [trained / "noise.png", CONFIG, trained / "weights.pth", "--out", "gates.png"]
    printed = run_tool("analysis_tools/vis_gates", *args, "--at", 10, 20, cwd=tmp_path)
    assert printed.count("median half-life") == 5
    assert differ(tmp_path / "gates.png")
    layers = json.loads((tmp_path / "gates.json").read_text())["layers"]
    assert [layer["grid"] for layer in layers] == [[16, 16], [8, 8], [4, 4], [4, 4], [2, 2]]
    for weights in (layer[way]["weight"] for layer in layers for way in ("forward", "backward")):
        weight = np.array(list(weights.values()))  # percentiles ascend
        assert (weight[:, 0] == 1).all() and (np.diff(weight, axis=0) >= 0).all()
        assert (np.diff(weight, axis=1) < 0).all()  # no gate of a new model is fully open


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "extra", "message"),
    [
        ("cam", "--layers 7", "there are 1 outputs, 0 to 0"),
        ("cam", "--layers backbone.layers.9", "no layer .*there are .*backbone.layers.0"),
        ("cam", "--layers backbone.layers", "does not call"),
        ("cam", "--layers head.fc", "neither a map nor tokens"),
        ("cam", "--class cat", "no such class; give one of class0"),
        ("cam", "--device cuda:99", "--device cuda:99"),
        ("cam", "--score-thr 0.5", "--score-thr is for detectors"),
        ("receptive_field", "--images .", "no picture"),
        ("gates", "--at 64 0", "the network's input is 64 wide and 64 high"),
        ("gates", "--layers backbone.norm3", "no such gated layer; there are backbone.layers.0"),
    ],
)
def test_bad_input_is_one_clear_error(trained, tmp_path, run_tool, tool, extra, message):
    args = [CONFIG, trained / "weights.pth"]
    args = args if tool == "receptive_field" else [trained / "noise.png", *args]
    with pytest.raises(UsageError, match=message):
        run_tool(f"analysis_tools/vis_{tool}", *args, *extra.split(), cwd=tmp_path)


def test_bad_files(trained, tmp_path, run_tool, capsys):
    for image, message in (("none.png", "'none.png' is not there"), (CONFIG, "not a picture")):
        args = (image, CONFIG, trained / "weights.pth")
        with pytest.raises(UsageError, match=message):
            run_tool("analysis_tools/vis_gates", *args, cwd=tmp_path)
    with pytest.raises(SystemExit):
        run_tool("analysis_tools/vis_receptive_field", "c.py", "--out", "x.jpg", cwd=tmp_path)
    assert "a file that ends in .png, got x.jpg" in capsys.readouterr().err
