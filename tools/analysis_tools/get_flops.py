"""Count what a config's model costs, for any backbone in it: parameters, FLOPs, memory traffic.

Examples:
    python tools/analysis_tools/get_flops.py configs/mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py
    python tools/analysis_tools/get_flops.py CONFIG CONFIG --traffic --size 800 1280 --top 12
    python tools/analysis_tools/get_flops.py CONFIG --traffic --device cpu --whole

A FLOP is one multiply-add, see docs/models.md. One image, of the size that the field reports:
classifiers at the crop of their test pipeline; detectors at 800x1280 (HxW), or at the square that
their test pipeline resizes to, padded as they ask for; segmentors at 512x2048 as a whole, or at the
one size that they pad test images to, without the auxiliary head.

`--traffic`, for a float32 training step of one image (512x512) through the backbone: what autograd
keeps between the two passes, without parameters, and the bytes that all operators read and write,
each operator's tensors once. On the meta device our models take their Triton kernels, `--device
cpu` runs the step in plain PyTorch, `--whole` with heads, losses and 8 random objects.
"""

# ruff: noqa: E402
import argparse
import copy
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import common
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vig_mm.apis.launch import add_config_options, load_config, run
from vig_mm.checks.config import pipeline_of
from vig_mm.errors import UsageError
from vig_mm.registry import type_name

DETECTION_SIZE, SEGMENTATION_SIZE, TRAFFIC_SIZE = (800, 1280), (512, 2048), (512, 512)
PROPOSALS, MASKED_BOXES = 1000, 100
MOVES_NOTHING = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "t", "_reshape_alias", "_unsafe_view"),
)
TABLE = "traffic"  # name of the markers in the page


# FLOPs ------------------------------------------------------------------------------------------


def input_size(cfg: Config) -> tuple[int, int]:
    """Height and width in pixels that FLOPs are counted at, see the module's docstring.

    Raises:
        UsageError: a classifier whose test pipeline does not crop.
    """
    preprocessor, pipeline = cfg.model.get("data_preprocessor", {}), pipeline_of(cfg, "test")
    if cfg.default_scope == "mmdet":
        scales = [step.scale for step in pipeline if type_name(step) == "Resize"]
        square = len(scales) == 1 and scales[0][0] == scales[0][1]
        divisor = preprocessor.get("pad_size_divisor", 1)
        size = scales[0] if square else DETECTION_SIZE
        return tuple(-(-side // divisor) * divisor for side in size)
    if cfg.default_scope == "mmseg":
        return tuple(preprocessor.get("test_cfg", {}).get("size", SEGMENTATION_SIZE))
    crops = [step.crop_size for step in pipeline if type_name(step) == "CenterCrop"]
    if len(crops) != 1:
        raise UsageError(
            f"the test pipeline has {len(crops)} CenterCrop steps, so how large images are is not "
            "known: give --size H W"
        )
    return (crops[0], crops[0])


def _run_rois(extractor: nn.Module, heads: nn.Module, count: int) -> None:
    """Put ``count`` RoIs through a head, or through the head of every stage of a cascade."""
    if not isinstance(heads, nn.ModuleList):
        extractor, heads = [extractor], [heads]
    for stage, head in zip(extractor, heads, strict=True):
        height, width = stage.roi_layers[0].output_size
        head(torch.empty(count, stage.out_channels, height, width, device="meta"))


def _run_detector(model: nn.Module, image: Tensor) -> None:
    from mmdet.models import SingleStageDetector, TwoStageDetector

    if isinstance(model, TwoStageDetector):
        model.rpn_head(model.extract_feat(image))
        roi = model.roi_head
        _run_rois(roi.bbox_roi_extractor, roi.bbox_head, PROPOSALS)
        if roi.with_mask:
            _run_rois(roi.mask_roi_extractor, roi.mask_head, MASKED_BOXES)
    elif isinstance(model, SingleStageDetector):
        model(image, mode="tensor")
    else:
        kind = type(model).__name__
        raise UsageError(
            f"{kind} is neither a one-stage nor a two-stage detector: not counted here"
        )


def read_config(path: Path, cfg_options: dict | None = None) -> Config:
    """`load_config` for a command of one process."""
    options = dict(cfg_options=cfg_options, work_dir=None, launcher="none", local_rank=0)
    return load_config(argparse.Namespace(config=str(path), **options))


def build(cfg: Config) -> nn.Module:
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return revert_sync_batchnorm(registry.build(cfg.model))


def count_model(model: nn.Module, scope: str, size: tuple[int, int]) -> dict[str, int]:
    """Parameters, and FLOPs of an image of a size (H, W); the model itself is left as it is."""
    meta, image = copy.deepcopy(model).eval().to("meta"), torch.empty(1, 3, *size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if scope == "mmdet":
            _run_detector(meta, image)
        else:
            meta(image, mode="tensor")
    parameters = sum(x.numel() for x in model.parameters())
    return dict(parameters=parameters, flops=counter.get_total_flops() // 2)  # torch counts both


def count(cfg: Config, size: tuple[int, int] | None = None) -> dict:
    """Parameters, FLOPs (multiply-adds) and the input size ``[H, W]`` that they are counted at.

    Raises:
        UsageError: a classifier without a test crop, or a detector of a kind that is not counted.
    """
    size = size or input_size(cfg)
    return dict(**count_model(build(cfg), cfg.default_scope, size), input=list(size))


# Traffic ----------------------------------------------------------------------------------------


class TrafficMode(TorchDispatchMode):
    """Bytes read and written, and calls, of every operator that moves something.

    Views and empty allocations move nothing; of a custom operator its inputs and outputs count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter = Counter()
        self.calls: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").removeprefix("vig_mm::")
        aliases = (x.alias_info for x in func._schema.returns if x.alias_info is not None)
        if not (func.is_view or name in MOVES_NOTHING or any(not x.is_write for x in aliases)):
            self.bytes[name] += sum(x.nbytes for x in _tensors((args, kwargs, out)))
            self.calls[name] += 1
        return out


def _tensors(tree: object) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def training_traffic(forward: Callable[[], object], parameters: Iterable[Tensor]) -> dict:
    """Of a training step whose loss is the sum of all that ``forward`` returns.

    Args:
        forward: to a tensor, or tensors in tuples, lists and dicts.
        parameters: what is no part of what is kept.

    Returns:
        ``kept``: bytes that autograd holds after the forward pass; ``forward``, ``training``: bytes
        moved by the forward pass and by both; ``operators``: calls in both; ``by_operator``: name
        to bytes moved in both, the largest first.
    """
    kept: dict[int, int] = {}
    alive = [x.untyped_storage() for x in parameters]  # or another might get the place of one gone
    own = {storage._cdata for storage in alive}

    def pack(x: Tensor) -> Tensor:
        alive.append(x.untyped_storage())
        kept[alive[-1]._cdata] = alive[-1].nbytes()
        return x

    mode = TrafficMode()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), mode:
        outputs = forward()
    moved = mode.bytes.total()
    loss = sum(x.sum() for x in _tensors(outputs) if x.requires_grad)
    with mode:
        loss.backward()
    return {
        "kept": sum(size for key, size in kept.items() if key not in own),
        "forward": moved,
        "training": mode.bytes.total(),
        "operators": mode.calls.total(),
        "by_operator": dict(mode.bytes.most_common()),
    }


def backbone_traffic(
    cfg: Config, size: tuple[int, int] = TRAFFIC_SIZE, device: str = "meta"
) -> dict:
    """`training_traffic` of a config's backbone, or of its whole model if that is of one piece."""
    settings = cfg.model.get("backbone", cfg.model)
    settings = {key: value for key, value in settings.items() if key != "init_cfg"}
    if "vig_mm" in str(settings["type"]) and device == "meta":
        settings["backend"] = "triton"
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = revert_sync_batchnorm(registry.build(settings)).to(device)
        model.train()  # of which some return nothing
    image = torch.zeros(1, 3, *size, device=device)
    return training_traffic(partial(model, image), model.parameters())


def whole_traffic(cfg: Config, size: tuple[int, int]) -> dict:
    """`training_traffic` of a config's model with its losses, for one image, on the CPU."""
    torch.manual_seed(0)
    model = build(common.without_padding(cfg, size)).train()
    images, samples = common.make_batch(model, cfg.default_scope, size, 1)
    loss = partial(model, images, samples, mode="loss")
    return training_traffic(lambda: model.parse_losses(loss())[0], model.parameters())


def traffic_table(results: dict[str, dict]) -> str:
    columns = ["", "kept, MiB", "traffic forward, GiB", "forward + backward, GiB", "operators"]
    lines = []
    for name, found in results.items():
        moved = (common.significant(found[key] / 2**30) for key in ("forward", "training"))
        kept = common.significant(found["kept"] / 2**20)
        lines.append([name, kept, *moved, str(found["operators"])])
    return common.markdown(columns, lines)


def main() -> None:
    parser = common.make_parser(__doc__, page=True)
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    pixels = common.at_least(32)
    parser.add_argument("--size", nargs=2, type=pixels, metavar=("H", "W"), help="of the image")
    parser.add_argument("--traffic", action="store_true", help="count memory traffic instead")
    parser.add_argument("--device", choices=("meta", "cpu"), default="meta", help="of --traffic")
    parser.add_argument("--whole", action="store_true", help="with heads and losses; --device cpu")
    parser.add_argument("--top", type=int, default=0, help="list so many operators that move most")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the traffic there, too")
    add_config_options(parser)
    args = parser.parse_args()
    if args.whole and args.device != "cpu":
        parser.error("--whole needs --device cpu: what a head does depends on values")
    results, size = {}, tuple(args.size or TRAFFIC_SIZE)
    for path in args.configs:
        cfg, name = read_config(path, args.cfg_options), path.stem
        if args.whole:
            results[name] = whole_traffic(cfg, size)
        elif args.traffic:
            results[name] = backbone_traffic(cfg, size, args.device)
        else:
            found = count(cfg, args.size and size)
            print(f"{name}\n  parameters  {found['parameters']:>18,}")
            print(f"  FLOPs       {found['flops']:>18,}  at {{}}x{{}}".format(*found["input"]))
    if not results:
        return
    print(text := traffic_table(results))
    for name, found in results.items():
        for operator, moved in list(found["by_operator"].items())[: args.top]:
            print(f"{name}: {operator} {common.significant(moved / 2**30)} GiB")
    if args.out:
        settings = {"size": list(size), "device": args.device, "whole": args.whole}
        common.write_json(args.out, settings=settings, results=results)
        print(f"written: {args.out}")
    if args.page:
        common.fill_page(args.page, TABLE, text)


if __name__ == "__main__":
    run(main)
