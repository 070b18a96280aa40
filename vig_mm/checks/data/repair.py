"""Repairs of what is unambiguous and what only a library trips over; each says what it did.

The user's own files are never written to: what is repaired is a copy in the work folder.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config import leaves
from . import coco
from .check import check_of
from .coco_file import read_coco
from .findings import number
from .options import class_of, classes_of


def repair(cfg: Config, splits: tuple[str, ...], read: dict | None = None) -> list[str]:
    """Repair the data sets and evaluators of a config.

    - Classes that are text for want of a comma become a list of one.
    - mmdet refuses an id that two annotations have, and a file without categories. pycocotools
      keeps the id of a matched annotation, takes 0 for "not matched", and stops at text and where
      iscrowd is missing. Nothing else refers to these ids: a copy has them from 1 in the file's
      order, which predictions and what is dumped of them do not show.

    Args:
        cfg: A whole config with `work_dir`; its data sets and evaluators may be changed.
        splits: Whose loaders and evaluators.
        read: Content of annotation files, from `check_data`.

    Returns:
        For the log, one line for each repair.
    """
    read, scope, lines = {} if read is None else read, cfg.get("default_scope"), []
    for split in splits:
        loader, names = cfg.get(f"{split}_dataloader") or {}, ()
        for where, dataset in leaves(f"{split}_dataloader.dataset", loader.get("dataset")):
            kind = class_of(dataset, scope)
            check = check_of(kind) if isinstance(kind, type) else None
            if check is None:
                continue
            lines += _named(where, dataset, kind)
            path = os.path.join(dataset.get("data_root") or "", dataset.get("ann_file") or "")
            if check is coco.check and "://" not in path:
                names = classes_of(dataset, kind)
                lines += _read_copy(where, dataset, path, cfg, read, names, scored=False)
        for metric in coco.metrics_of(cfg.get(f"{split}_evaluator")):
            path = metric.get("ann_file")
            if path and "://" not in path and coco.is_coco_metric(metric, scope):
                where = f"{split}_evaluator"
                lines += _read_copy(where, metric, path, cfg, read, names, scored=True)
    return lines


def _named(where: str, dataset: dict, kind: type) -> Iterator[str]:
    classes = classes_of(dataset, kind)
    if isinstance(classes, str) and "," not in classes:
        if dataset.get("classes") is not None:
            dataset["classes"] = (classes,)
        else:
            dataset["metainfo"] = {**dataset["metainfo"], "classes": (classes,)}
        yield f"{where}: its classes are text, {classes!r}: read as ({classes!r},), with a comma"


def _read_copy(
    where: str, reader: dict, path: str, cfg: Config, read: dict, classes: Any, scored: bool
) -> list[str]:
    """Have a data set, or a metric, which scores, read a copy of a file if it needs one."""
    real = os.path.realpath(path)
    content = read[real] if real in read else read_coco(path)
    read[real] = content
    if not isinstance(content, dict):
        return []  # the check, or the library, says so
    annotations = content.get("annotations", [])
    faults, repairs = [], []
    if len({one["id"] for one in annotations}) < len(annotations):
        faults.append("gives several annotations one id, which mmdet refuses")
    elif scored and not all(map(coco.has_scorable_id, annotations)):
        faults.append("numbers an annotation 0 or by text, which pycocotools cannot score")
    if faults:
        repairs.append(f"the {number(len(annotations), 'annotation')} count from 1")
        annotations = [{**one, "id": i} for i, one in enumerate(annotations, 1)]
    bare = sum(one.get("iscrowd") is None for one in annotations) if scored else 0
    if bare:
        faults.append("leaves iscrowd out, without which pycocotools stops")
        repairs.append(f"it is 0 in {number(bare, 'annotation')}")
        annotations = [{**one, "iscrowd": one.get("iscrowd") or 0} for one in annotations]
    changed = dict(annotations=annotations) if faults else {}
    if "categories" not in content and classes:
        faults.append("has no categories, which mmdet asks for")
        repairs.append(f"they are the {len(classes)} classes")
        changed["categories"] = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
    if not faults:
        return []
    reader["ann_file"] = _copy({**content, **changed}, path, cfg.work_dir)
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
