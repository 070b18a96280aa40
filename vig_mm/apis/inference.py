"""Inference: the model of a config with trained weights, one image at a time."""

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope

from vig_mm.checkpoints.reading import read_checkpoint
from vig_mm.checks.config import pipeline_of
from vig_mm.checks.data.images import FAULTS, file_fault
from vig_mm.checks.weights import check_weights
from vig_mm.errors import UsageError
from vig_mm.registry import type_name

from .launch import resolve_device
from .precision import infer_in_bfloat16

_VISUALIZERS = dict(
    mmdet="DetLocalVisualizer", mmseg="SegLocalVisualizer", mmpretrain="UniversalVisualizer"
)


class Predictor:
    """The library's own inferencer of a config, with the same result for all three.

    Args:
        cfg: mmdet, mmseg or mmpretrain config.
        checkpoint: mm checkpoint of its model.
        device: `cpu`, `cuda:0`, ...; default: the GPU where there is one.
        amp: compute in bfloat16.

    Attributes:
        meta: ``dataset_meta`` of the checkpoint, or of the config's test set where the checkpoint
            has none; ``classes`` in label order, and ``palette`` for segmentation.

    Raises:
        CheckpointError: the checkpoint does not fit the model.
        UsageError: the device is not there, or the class names are nowhere.
    """

    def __init__(
        self, cfg: Config, checkpoint: str, device: str | None = None, amp: bool = False
    ) -> None:
        init_default_scope(cfg.default_scope)
        self.scope = cfg.default_scope
        self.meta = _meta(cfg, checkpoint)
        cfg = copy.deepcopy(cfg)
        # asked for by the inferencers, and used for nothing
        cfg.visualizer = dict(type=_VISUALIZERS[self.scope], vis_backends=[])
        self.inferencer = _inferencer(cfg, checkpoint, str(resolve_device(device)))
        check_weights(self.inferencer.model, checkpoint)
        if amp:
            infer_in_bfloat16(self.inferencer.model)

    def predict(self, image: str | np.ndarray) -> Any:
        """The data sample, on the CPU, that a file or a BGR array ``[h, w, 3]`` gives."""
        (batch,) = self.inferencer.preprocess([image])
        if self.scope == "mmdet":
            _, batch = batch  # mmdet keeps the image beside it
        return self._forward(batch)

    def predict_item(self, item: dict) -> Any:
        """The same of a data set's item; the sample keeps its annotations."""
        return self._forward(pseudo_collate([item]))

    def _forward(self, batch: dict) -> Any:
        return self.inferencer.forward(batch)[0].cpu()


def read_image(path: Path, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """A picture file as a BGR array ``[h, w, 3]`` (uint8); `flag`: OpenCV's.

    Raises:
        UsageError: there is no such file, it is cut off, or it is not a picture.
    """
    if fault := file_fault(str(path)):
        raise UsageError(f"{str(path)!r} {FAULTS[fault]} (seen from {str(Path.cwd())!r})")
    image = cv2.imread(str(path), flag)
    if image is None:
        raise UsageError(f"{str(path)!r} is not a picture that OpenCV can read")
    return image


def _inferencer(cfg: Config, checkpoint: str, device: str) -> Any:
    if cfg.default_scope == "mmdet":
        from mmdet.apis import DetInferencer

        return DetInferencer(cfg, checkpoint, device=device)
    if cfg.default_scope == "mmseg":
        from mmseg.apis import MMSegInferencer

        with TRANSFORMS.switch_scope_and_registry("mmseg") as registry:
            for step in pipeline_of(cfg, "test"):  # it looks for transforms by their text
                if registry.get(type_name(step)) is step["type"]:
                    step["type"] = type_name(step)
        return MMSegInferencer(cfg, checkpoint, device=device)
    from mmpretrain.apis import ImageClassificationInferencer

    return ImageClassificationInferencer(cfg, checkpoint, device=device)


def _meta(cfg: Config, checkpoint: str) -> dict:
    """Class names; the libraries would take COCO's or Cityscapes' where a checkpoint has none."""
    meta = read_checkpoint(checkpoint).get("meta", {}).get("dataset_meta", {})
    if meta.get("classes"):
        return meta
    dataset = copy.deepcopy(cfg.test_dataloader.dataset)
    meta = DATASETS.build({**dataset, "lazy_init": True}).metainfo
    if not meta.get("classes"):
        raise UsageError(
            f"neither {checkpoint!r} nor test_dataloader.dataset.metainfo names the classes: "
            'add them, e.g. --cfg-options test_dataloader.dataset.metainfo.classes="[cat,dog]"'
        )
    return meta
