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
from .quick.check import coco_datasets
from .quick.coco import has_scorable_id, is_coco_metric, metrics_of


def repair_annotations(cfg: Config, splits: tuple[str, ...]) -> list[str]:
    """Let data sets and evaluators read a copy of COCO files over which their library would trip.

    mmdet refuses an id that two annotations have. pycocotools keeps the id of a matched annotation,
    takes 0 for "not matched", and stops at text and where iscrowd is missing. Nothing else refers
    to these ids, so the copy, in the work folder, has them from 1 in the file's order.
    Predictions, and what is dumped of them, do not change.

    Args:
        cfg: A whole config with `work_dir`; an `ann_file` of its loaders and evaluators may be
            replaced.
        splits: Whose.

    Returns:
        For the log, one line for each copy.
    """
    lines = []
    for split in splits:
        for where, dataset in coco_datasets(cfg, split):
            path = os.path.join(dataset.get("data_root") or "", dataset.get("ann_file") or "")
            if os.path.isfile(path):
                lines += _repair(where, dataset, path, cfg.work_dir, scored=False)
        for metric in metrics_of(cfg.get(f"{split}_evaluator")):
            path = metric.get("ann_file")
            if path and is_coco_metric(metric, cfg.get("default_scope")):
                lines += _repair(f"{split}_evaluator", metric, path, cfg.work_dir, scored=True)
    return lines


def _repair(where: str, reader: dict, path: str, work_dir: str, scored: bool) -> list[str]:
    """Have a data set or a metric read a copy of a COCO file if it needs one; what to log."""
    content = read_coco(path)
    annotations = content.get("annotations", []) if isinstance(content, dict) else []
    faults, repairs = [], []
    if len({one["id"] for one in annotations}) < len(annotations):
        faults.append("gives several annotations one id, which mmdet refuses")
    elif scored and not all(has_scorable_id(one) for one in annotations):
        faults.append("numbers an annotation 0 or by text, which pycocotools cannot score")
    if faults:
        repairs.append(f"the {number(len(annotations), 'annotation')} count from 1")
        for i, one in enumerate(annotations, 1):
            one["id"] = i
    no_crowds = [one for one in annotations if scored and one.get("iscrowd") is None]
    if no_crowds:
        faults.append("leaves iscrowd out, without which pycocotools stops")
        repairs.append(f"it is 0 in {number(len(no_crowds), 'annotation')}")
        for one in no_crowds:
            one["iscrowd"] = 0
    if not faults:
        return []
    reader["ann_file"] = _copy(content, path, work_dir)
    return [
        f"{where}.ann_file: {path!r} {' and '.join(faults)}: it reads {reader['ann_file']!r}, "
        f"where {' and '.join(repairs)}"
    ]


def _copy(content: dict, path: str, work_dir: str) -> str:
    """Where the content of a file was written to in the work folder."""
    text = json.dumps(content)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    folder = Path(work_dir).resolve() / "repaired" / "annotations"
    copy = folder / f"{Path(path).stem}_repaired_{digest}.json"
    if not copy.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # several processes may write it at once
        part = copy.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        part.replace(copy)
    return str(copy)
