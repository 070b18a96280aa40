"""Hook that draws classifications. Needs mmpretrain."""

from collections.abc import Sequence
from pathlib import Path

from mmpretrain.engine.hooks import VisualizationHook
from mmpretrain.registry import HOOKS
from mmpretrain.structures import DataSample

MIN_SIDE = 224  # pixels; the text on a smaller picture cannot be read


@HOOKS.register_module()
class ClassPicturesHook(VisualizationHook):
    """mmpretrain's hook, made to write one picture per image, test-time augmentation or not.

    The original names a picture after its file only, so that class folders with files of the same
    name overwrite each other's pictures.
    """

    def _draw_samples(
        self, batch_idx: int, data_batch: dict, data_samples: Sequence[DataSample], step: int = 0
    ) -> None:
        if not self.enable:
            return
        images = data_batch["inputs"]
        if isinstance(images, list) and images[0].ndim == 4:
            images = images[0]  # [views][B, 3, h, w]: draw on the first view
        for image, sample in zip(images, data_samples, strict=True):
            path = Path(sample.img_path)
            name = f"{path.parent.name}_{path.stem}.png"
            self._visualizer.visualize_cls(
                image=image.permute(1, 2, 0).cpu().numpy().astype("uint8"),
                data_sample=sample,
                resize=max(MIN_SIDE, min(image.shape[-2:])),
                name=name,
                out_file=str(Path(self.out_dir, name)),
                step=step,
                **self.draw_args,
            )
