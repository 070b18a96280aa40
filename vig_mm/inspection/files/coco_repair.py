"""A copy of a COCO file without the faults over which only a library trips.

The user's own file is never written to.
"""

import hashlib
import json
import os
from pathlib import Path

from ..findings import number


def has_scorable_id(annotation: dict) -> bool:
    """Whether pycocotools can keep an annotation's id among its matches."""
    return isinstance(annotation["id"], int) and annotation["id"] != 0


def repair(
    where: str, reader: dict, path: str, content: dict, work_dir: str, scored: bool
) -> list[str]:
    """Have a data set or a metric read a copy of a COCO file if it needs one.

    mmdet refuses an id that two annotations have. pycocotools keeps the id of a matched annotation,
    takes 0 for "not matched", and stops at text and where iscrowd is missing. Nothing else refers
    to these ids, so the copy has them from 1 in the file's order.

    Args:
        where: Key of the reader in its config.
        reader: Its config, whose `ann_file` may be replaced.
        path: The file.
        content: Of the file; changed where it is repaired.
        work_dir: Where the copy goes.
        scored: Whether pycocotools reads it, too.

    Returns:
        For the log, a line if there is a copy.
    """
    annotations = content.get("annotations", [])
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
