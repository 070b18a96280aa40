"""Hook that draws the predictions of a test, for `tools/test.py --show-dir`."""

from pathlib import Path
from typing import Any

import cv2
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vig_mm.checks.config import leaves
from vig_mm.registry import HOOKS
from vig_mm.visualization.pictures import as_picture, save
from vig_mm.visualization.sample_pictures import (
    PREDICTION,
    TRUTH,
    data_root,
    drawn_names,
    read_flag,
    sample_pictures,
    truth_frame,
)


@HOOKS.register_module()
class PicturesHook(Hook):
    """Writes one picture for each image of a test, ground truth beside prediction.

    The libraries' own hooks name a picture after its file only, so that files of one name in
    several folders overwrite each other's.

    Args:
        out_dir: Folder of the pictures, which are named by the path below the data's root.
        scope: mmdet, mmseg or mmpretrain.
    """

    def __init__(self, out_dir: str, scope: str) -> None:
        self.out_dir, self.scope = Path(out_dir), scope

    def before_test(self, runner: Runner) -> None:
        """Choose the names: those of one stem are told apart by their endings."""
        dataset = runner.test_dataloader.dataset
        paths = [dataset.get_data_info(i).get("img_path") for i in range(len(dataset))]
        cfg = runner.cfg.test_dataloader.dataset
        names = drawn_names(paths, data_root(cfg))
        (_, leaf), *_ = leaves("test_dataloader.dataset", cfg)
        self.pipeline = leaf.get("pipeline") or ()
        self.names = dict(zip(paths, names, strict=True))
        self.drawer = sample_pictures(self.scope, dataset.metainfo)
        self.drawer.write_legend(self.out_dir)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw the samples of a batch."""
        inputs = data_batch["inputs"]
        for i, sample in enumerate(outputs):
            image = cv2.imread(sample.img_path, read_flag(self.pipeline))
            if image is None:  # read by another loader: as the model gets the first view of it
                first = inputs[0] if isinstance(inputs[0], list) else inputs
                picture = as_picture(first[i] if first[i].ndim == 3 else first[0][i])
                image = cv2.resize(picture, sample.ori_shape[1::-1])
            sides = (TRUTH, PREDICTION) if self.drawer.has_truth(sample) else (PREDICTION,)
            frame = truth_frame(self.pipeline, sample)
            drawn = self.drawer.draw(image[..., ::-1], sample, sides, frame)
            save(drawn, self.out_dir / self.names[sample.img_path])
