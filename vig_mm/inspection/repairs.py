"""Repairs of data that is unambiguous and that only a library trips over, with a word."""

from mmengine.config import Config

from .files.coco import read_coco
from .files.coco_repair import repair
from .quick.coco import is_coco_metric, metrics_of


def repair_annotations(cfg: Config, splits: tuple[str, ...]) -> list[str]:
    """Let evaluators read a copy of COCO files over which pycocotools would trip.

    Predictions, and what is dumped of them, do not change. What data sets read, `check_data` has
    repaired.

    Args:
        cfg: A whole config with `work_dir`; its evaluators' `ann_file` may be replaced.
        splits: Whose evaluators.

    Returns:
        For the log, one line for each copy.
    """
    lines = []
    for split in splits:
        for metric in metrics_of(cfg.get(f"{split}_evaluator")):
            path = metric.get("ann_file")
            if path and is_coco_metric(metric, cfg.get("default_scope")):
                content = read_coco(path)
                if isinstance(content, dict):
                    where = f"{split}_evaluator"
                    lines += repair(where, metric, path, content, cfg.work_dir, scored=True)
    return lines
