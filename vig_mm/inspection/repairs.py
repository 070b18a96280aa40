"""Repairs of data that is unambiguous and that only a library trips over: in a copy, with a word.

The user's own files are never written to.
"""

import hashlib
import json
import os
from pathlib import Path

from mmengine.config import Config

from .files.coco import read_coco
from .findings import number
from .quick.coco import has_scorable_id, is_coco_metric, metrics_of


def repair_annotations(cfg: Config, splits: tuple[str, ...]) -> list[str]:
    """Let evaluators read a copy of COCO files that pycocotools would score wrong.

    pycocotools keeps the id of a matched annotation, and takes 0 for "not matched" and stops at
    text. Nothing else refers to these ids, so the copy, in the work folder, has them from 1 in the
    file's order. Predictions, and what is dumped of them, do not change.

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
            if not path or not is_coco_metric(metric, cfg.get("default_scope")):
                continue
            copy, count = _renumbered(path, cfg.work_dir)
            if copy is not None:
                metric["ann_file"] = copy
                lines.append(
                    f"{split}_evaluator.ann_file: {path!r} numbers an annotation 0 or by text, "
                    f"which pycocotools cannot score: it reads {copy!r}, where the "
                    f"{number(count, 'annotation')} count from 1"
                )
    return lines


def _renumbered(path: str, work_dir: str) -> tuple[str | None, int]:
    """A copy of a COCO file with ids from 1, and how many; None where it needs none."""
    content = read_coco(path)
    annotations = content.get("annotations", []) if isinstance(content, dict) else []
    if all(has_scorable_id(one) for one in annotations):
        return None, 0
    for i, one in enumerate(annotations, 1):
        one["id"] = i
    text = json.dumps(content)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    copy = Path(work_dir) / "repaired" / "annotations" / f"{Path(path).stem}_from-1_{digest}.json"
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        # several processes may write it at once
        part = copy.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        part.replace(copy)
    return str(copy), len(annotations)
