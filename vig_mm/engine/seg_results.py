"""Metric that dumps predicted label maps."""

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import DumpResults


class DumpSegResults(DumpResults):
    """Write predicted label maps (uint8 `[1, h, w]`) without the scores of every class.

    Those are `[classes, h, w]` floats: hundreds of gigabytes over ADE20K's validation set.
    """

    def process(self, data_batch: Any, predictions: Sequence[dict]) -> None:
        """Keep the label map and the meta information of each prediction."""
        dropped = ("seg_logits", "gt_sem_seg", "pred_sem_seg")
        for prediction in predictions:
            kept = {key: value for key, value in prediction.items() if key not in dropped}
            labels = prediction["pred_sem_seg"]["data"]
            kept["pred_sem_seg"] = {"data": labels.byte().cpu()}
            self.results.append(kept)
