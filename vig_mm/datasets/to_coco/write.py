"""A COCO annotation file of pictures from any reader."""

from pathlib import Path

import numpy as np

from .objects import FormatError, Polygon, Thing
from .readers import FORMATS


def convert(
    kind: str,
    source: str | Path,
    images: str | Path | None = None,
    split: str = "train",
    classes: list[str] | None = None,
) -> tuple[dict, int]:
    """Read annotations of another format as COCO's.

    Args:
        kind: One of `FORMATS`.
        source: File or folder, as the format has it.
        images: Folder of the images, where the format does not tell.
        split: Of a YOLO data.yaml.
        classes: Their order; None for that of the format, or of the alphabet.

    Returns:
        Content of a COCO file, with ids from 1 and boxes and polygons in pixels; and how many
        shapes were left out because they are neither boxes nor areas.

    Raises:
        FormatError: The source is not of the format, or has a class that is not in ``classes``.
    """
    source = Path(source)
    if not source.exists():
        raise FormatError(f"{str(source)!r} is not there")
    pictures, names = FORMATS[kind](source, Path(images) if images else None, split)
    there = sorted({thing.name for picture in pictures for thing in picture.things})
    names = classes or names or there
    foreign = [name for name in there if name not in names]
    if foreign:
        raise FormatError(f"objects of {', '.join(map(repr, foreign))}, which are no classes")
    category = {name: i for i, name in enumerate(names, 1)}
    annotations = []
    for number, picture in enumerate(pictures, 1):
        for thing in picture.things:
            one = dict(
                id=len(annotations) + 1,
                image_id=number,
                category_id=category[thing.name],
                iscrowd=int(thing.crowd),
            )
            annotations.append({**one, **_shape(thing)})
    content = dict(
        images=[
            dict(id=i, file_name=one.name, width=one.size[0], height=one.size[1])
            for i, one in enumerate(pictures, 1)
        ],
        categories=[dict(id=i, name=name) for name, i in category.items()],
        annotations=annotations,
    )
    return content, sum(picture.skipped for picture in pictures)


def _shape(thing: Thing) -> dict:
    """bbox, area, and segmentation if there is one."""
    if not thing.polygons:
        x1, y1, x2, y2 = thing.box
        return dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1))
    corners = np.concatenate([np.reshape(one, (-1, 2)) for one in thing.polygons])
    (x1, y1), (x2, y2) = corners.min(0).tolist(), corners.max(0).tolist()
    area = sum(map(_area, thing.polygons))
    return dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=area, segmentation=thing.polygons)


def _area(polygon: Polygon) -> float:
    x, y = np.asarray(polygon, float).reshape(-1, 2).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
