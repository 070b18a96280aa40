"""Repairs of what is unambiguous and what only a library trips over; each says what it did.

The user's own files are never written to: what is repaired is a copy in the work folder.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config import leaves
from . import coco
from .check import check_of
from .coco_file import read_coco
from .data_set import class_of, classes_of, number


def repair(cfg: Config, splits: tuple[str, ...], read: dict | None = None) -> list[str]:
    """Repair the data sets and evaluators of a whole config, which may be changed.

    - Classes that are text for want of a comma become a list of one.
    - mmdet refuses an id that two annotations have, and a file without categories. pycocotools
      keeps the id of a matched annotation, takes 0 for "not matched", and stops at text and where
      iscrowd is missing. Nothing else refers to these ids: a copy has them from 1 in the file's
      order, which predictions and what is dumped of them do not show.

    `read`: content of annotation files, from `check_data`. Returns a line for each repair.
    """
    read, scope, lines = {} if read is None else read, cfg.get("default_scope"), []
    for split in splits:
        loader, classes = cfg.get(f"{split}_dataloader") or {}, ()
        readers = []  # where, what reads a file, the file, classes, whether it scores
        for where, dataset in leaves(f"{split}_dataloader.dataset", loader.get("dataset")):
            kind = class_of(dataset, scope)
            check = check_of(kind) if isinstance(kind, type) else None
            if check is None:
                continue
            classes = classes_of(dataset, kind)
            if isinstance(classes, str) and "," not in classes:
                said = f"{where}: its classes are text, {classes!r}: read as ({classes!r},)"
                lines.append(f"{said}, with a comma")
                own = dataset if dataset.get("classes") is not None else dataset["metainfo"]
                own["classes"] = classes = (classes,)
            path = os.path.join(dataset.get("data_root") or "", dataset.get("ann_file") or "")
            if check is coco.check and "://" not in path:
                readers.append((where, dataset, path, classes, False))
        for metric in coco.scoring_metrics(cfg, split):
            readers.append((f"{split}_evaluator", metric, metric["ann_file"], classes, True))
        for where, reader, path, *how in readers:
            real = os.path.realpath(path)
            content = read[real] = read[real] if real in read else read_coco(path)
            # what is no COCO file, the check, or the library, says
            content, repairs = _repaired(content, *how) if isinstance(content, dict) else ({}, {})
            if repairs:
                reader["ann_file"] = copy = _copy(content, path, cfg.work_dir)
                faults, done = " and ".join(repairs), " and ".join(repairs.values())
                said = f"{where}.ann_file: {path!r} {faults}: it reads {copy!r}"
                lines.append(f"{said}, where {done}")
    return lines


def _repaired(content: dict, classes: Any, scored: bool) -> tuple[dict, dict[str, str]]:
    """What a data set, or a metric, which scores, can read; and each fault, and what is done."""
    annotations, repairs = content.get("annotations", []), {}
    twice = len({one["id"] for one in annotations}) < len(annotations)
    bare = sum(one.get("iscrowd") is None for one in annotations) if scored else 0
    if twice or (scored and not all(map(coco.has_scorable_id, annotations))):
        fault = "numbers an annotation 0 or by text, which pycocotools cannot score"
        fault = "gives several annotations one id, which mmdet refuses" if twice else fault
        repairs[fault] = f"the {number(len(annotations), 'annotation')} count from 1"
        annotations = [{**one, "id": i} for i, one in enumerate(annotations, 1)]
    if bare:
        fault = "leaves iscrowd out, without which pycocotools stops"
        repairs[fault] = f"it is 0 in {number(bare, 'annotation')}"
        annotations = [{**one, "iscrowd": one.get("iscrowd") or 0} for one in annotations]
    content = {**content, "annotations": annotations} if repairs else content
    if "categories" not in content and classes:
        repairs["has no categories, which mmdet asks for"] = f"they are the {len(classes)} classes"
        listed = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        content = {**content, "categories": listed}
    return content, repairs


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
