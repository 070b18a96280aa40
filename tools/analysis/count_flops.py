"""Count the parameters and FLOPs of a config's model, for any backbone in it.

Example: python tools/analysis/count_flops.py configs/mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py

Parameters are those of the whole model, auxiliary heads included. A FLOP is one multiply-add, as
papers of this field count, and only products count: convolutions, linear layers, matrix products
and the recurrence of bidirectional GLA (4 N H K V a call, whatever a backend spends on it). Norms,
activations, pooling, interpolation, RoIAlign and the sampling of deformable attention do not.

One image, of the size that the field reports: classifiers at the crop of their test pipeline;
detectors at 800x1280 (HxW), or at the square that their test pipeline resizes to, with the padding
that they ask for, two-stage ones with 1000 proposals through each box head and 100 boxes through
each mask head; segmentors at 512x2048 as a whole, or at the one size that they pad test images to,
without the auxiliary head.

The model is built on the CPU and runs on torch's meta device: shapes only, nothing is computed.
"""

# ruff: noqa: E402
import argparse
from functools import partial

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import torch
from measuring import multiply_adds
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from vig_mm.apis.launch import load_config, run
from vig_mm.checks.config import pipeline_of
from vig_mm.errors import UsageError
from vig_mm.registry import type_name

DETECTION_SIZE, SEGMENTATION_SIZE = (800, 1280), (512, 2048)
PROPOSALS, MASKED_BOXES = 1000, 100


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
            f"the test pipeline has {len(crops)} CenterCrop steps, but one must say which image "
            "size to count a classifier at"
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
        raise UsageError(
            f"{type(model).__name__} is neither a one-stage nor a two-stage detector: how to count "
            "others is not defined here"
        )


def count(cfg: Config) -> dict:
    """Parameters, FLOPs (multiply-adds) and the input size ``[H, W]`` that they are counted at.

    Raises:
        UsageError: a classifier without a test crop, or a detector of a kind that is not counted.
    """
    size = input_size(cfg)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = registry.build(cfg.model)
    return dict(**count_model(model, cfg.default_scope, size), input=list(size))


def count_model(model: nn.Module, scope: str, size: tuple[int, int]) -> dict[str, int]:
    """Parameters, and FLOPs of an image of a size (H, W); the model itself is left as it is."""
    image = torch.empty(1, 3, *size, device="meta")
    run = _run_detector if scope == "mmdet" else partial(nn.Module.__call__, mode="tensor")
    flops = multiply_adds(model, lambda meta: run(meta, image))["Global"]
    return dict(parameters=sum(x.numel() for x in model.parameters()), flops=flops)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.set_defaults(cfg_options=None, work_dir=None, launcher="none", local_rank=0)
    counted = count(load_config(parser.parse_args()))
    print(f"parameters  {counted['parameters']:>18,}")
    print(f"FLOPs       {counted['flops']:>18,}  at {counted['input'][0]}x{counted['input'][1]}")


if __name__ == "__main__":
    run(main)
