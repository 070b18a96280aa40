"""What is wrong with the annotations of a COCO file, by the conditions of mmdet and pycocotools.

mmdet leaves out annotations and images without a word (`CocoDataset.parse_data_info` and
`filter_data`, `LoadAnnotations._process_masks`); here the same conditions are counted.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .findings import Table

_LARGEST = 2**31  # pycocotools draws with 32-bit integers
_LONGEST = 12  # characters of a run of an RLE that fits 60 bits
_BEYOND = 1.0  # pixels; COCO's own boxes end up to one behind the edge
_NOTHING = 1e-3  # pixels, what rounding leaves of points in a line
_SLACK = 16.0  # pixels, by which small areas may be off

_LEAVES = "mmdet leaves them out"
_BOX = "bbox is [x, y, width, height] in pixels, from the upper left corner"
ANNOTATIONS: Table = {
    "incomplete": (
        "error", "have no bbox, or no area",
        "mmdet or pycocotools stops; write both (area is that of the mask, or width * height)",
    ),
    "bad-box": (
        "error", "have a bbox that is not four finite numbers, or an area that is none", _BOX,
    ),
    "no-mask": (
        "error", "have no segmentation, and masks are loaded or scored",
        "mmdet or pycocotools stops; take them out, or draw them, or use a box detector "
        "with LoadAnnotations(with_mask=False) and metric='bbox'",
    ),
    "unscorable-mask": (
        "error", "have a first polygon of fewer than three points, or an RLE without counts and "
        "size", "pycocotools stops when it scores them; draw them again, or take them out",
    ),
    "bad-crowd": (
        "error", "have an iscrowd that is neither 0 nor 1", "pycocotools takes any text for a 1; "
        "write iscrowd=0, or 1 for a region of many objects",
    ),
    "no-crowd": (
        "note", "have no iscrowd", "pycocotools stops without: tools/train.py and tools/test.py "
        "score a copy in which it is 0",
    ),
    "bad-polygon": (
        "error", "have a segmentation that is neither a list of polygons [[x1, y1, ...], ...] "
        "nor an RLE", "mmdet stops; correct them",
    ),
    "rle-size": (
        "error", "have an RLE of another size than their image's height and width",
        "it is no mask of that image; correct the RLE or the image's entry",
    ),
    "broken-rle": (
        "error", "have an RLE whose runs do not fill its size", "the mask would be what happens "
        "to be in memory, and scoring may never end; write them again "
        "(pycocotools.mask.encode)",
    ),
    "text-id": (
        "error", "have an image_id or a category_id that is text where the list has a number, or "
        "a number where it has text", f"{_LEAVES}; write ids as numbers everywhere",
    ),
    "no-image": (
        "warning", "are of images that are not listed", f"{_LEAVES}; list the images, or take "
        "the annotations out", "of images that are not listed",
    ),
    "ignored": (
        "warning", "are marked ignore=1", f"{_LEAVES}; for a region of many objects write "
        "iscrowd=1 and an RLE", "marked ignore=1",
    ),
    "outside": (
        "warning", "have a box outside their image", f"{_LEAVES}; {_BOX}",
        "with a box outside the image",
    ),
    "no-area": (
        "warning", "have a box narrower than a pixel, or no area", f"{_LEAVES}; correct bbox and "
        "area, or take them out", "with a box narrower than a pixel, or no area",
    ),
    "other-class": (
        "warning", "are of categories that are not among the classes", f"{_LEAVES}; nothing to "
        "do if that is meant, else add the names to metainfo.classes", "of other classes",
    ),
    "short-polygons": (
        "warning", "have no polygon of three points or more", f"{_LEAVES}; draw them again",
        "with no polygon of three points",
    ),
    "bad-rle": (
        "warning", "have an RLE without counts and size", f"{_LEAVES}; write both",
        "with an RLE that lacks counts or size",
    ),
    "rotated": (
        "warning", "have attributes.rotation", "bbox is the box before it was turned, as CVAT "
        "exports it; export polygons, or take the turned ones out",
    ),
    "crowd": (
        "note", "are crowds (iscrowd=1)", "regions of many objects: training leaves them out, "
        "and in scores neither found nor missed counts", "marked iscrowd=1",
    ),
    "short-part": (
        "note", "have a polygon of fewer than three points among others", "mmdet leaves out "
        "these polygons and keeps the annotations",
    ),
}  # fmt: skip
# What mmdet's data set leaves out, and the evaluator, which reads the file itself, does not.
SCORED = ("ignored", "outside", "no-area", "short-polygons", "bad-rle")
SHAPES: Table = {
    "corner-box": (
        "error", "have the lower right corner of their mask for the width and height of bbox",
        "bbox is [x, y, width, height]",
    ),
    "no-mask-area": (
        "warning", "have polygons that enclose nothing", "mmdet keeps them with a mask of a few "
        "pixels or none; draw them again, or take them out",
    ),
    "box-mask": (
        "warning", "have a box and a mask that are apart", "both are learned as they are; correct "
        "one of them",
    ),
    "area": (
        "warning", "have an area that does not fit their polygons, RLE or box", "scores of small, "
        "medium and large objects go by it; write the mask's area, or width * height",
    ),
    "crossing": (
        "warning", "have a polygon that crosses itself", "what lies inside twice counts as "
        "outside; draw each part on its own where that is wrong",
    ),
    "beyond": (
        "note", "have a box that ends outside the image", "mmdet clips it",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CocoUse:
    """How a data set uses an annotation file."""

    where: str  # key of the data set in its config
    ann_file: str
    classes: tuple[str, ...]
    masks: bool  # whether its masks are loaded or scored
    filter_empty: bool = False  # `filter_empty_gt` of a data set that filters
    min_size: int = 0  # shortest side of an image, in pixels
    evaluated: bool = False  # whether it is scored on
    scores_masks: bool = False  # whether the metric reads its masks


def annotation_cases(content: dict, use: CocoUse) -> dict[str, list[dict]]:
    """The annotations of each kind of `ANNOTATIONS`, and "kept": those that mmdet keeps.

    What mmdet leaves out can be of a second kind, an error: scoring reads it all the same.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    listed = {one["id"]: one["name"] for one in content.get("categories", [])}
    wanted = {key for key, name in listed.items() if name in use.classes}
    texts = [{str(key) for key in keys} for keys in (sizes, listed)]
    cases = defaultdict(list)
    for annotation in content.get("annotations", []):
        image, category = annotation["image_id"], annotation["category_id"]
        is_wanted = category in wanted
        is_scored = use.evaluated and is_wanted and image in sizes
        kind = _box_case(annotation, sizes, is_scored)
        if kind is None and not is_wanted:
            # unlisted ones are reported with the classes
            kind = "other-class" if category in listed else "unlisted"
        same = (image not in sizes and str(image) in texts[0]) or (
            category not in listed and str(category) in texts[1]
        )
        kind = "text-id" if same else kind
        mask = None
        if (use.masks and kind is None) or (use.scores_masks and is_scored):
            mask = _mask_fault(annotation, sizes[image], use.scores_masks)
        if mask is not None and (kind is None or ANNOTATIONS[mask][0] == "error"):
            cases[mask].append(annotation)
        is_kept = kind is None and mask in (None, "short-part")
        if is_kept:
            cases["kept"].append(annotation)
        if kind is not None:
            cases[kind].append(annotation)
        if is_kept and (annotation.get("attributes") or {}).get("rotation"):
            cases["rotated"].append(annotation)
        crowd = annotation.get("iscrowd")
        if crowd is None:  # training takes it for 0
            if is_scored:
                cases["no-crowd"].append(annotation)
        elif (is_scored or is_kept) and crowd not in (0, 1):
            cases["bad-crowd"].append(annotation)
        elif is_kept and crowd:
            cases["crowd"].append(annotation)
    return cases


def _box_case(annotation: dict, sizes: dict, is_scored: bool) -> str | None:
    """mmdet's conditions, in its order; pycocotools reads the box in spite of ignore=1."""
    if annotation["image_id"] not in sizes:
        return "no-image"
    if annotation.get("ignore") and not is_scored:
        return "ignored"
    box, area = annotation.get("bbox"), annotation.get("area")
    if box is None or area is None:
        return "incomplete"
    if not (are_finite_box(box) and _are_finite([area])):
        return "bad-box"
    if annotation.get("ignore"):
        return "ignored"
    x, y, width, height = box
    image_width, image_height = sizes[annotation["image_id"]]
    inner_width = max(0, min(x + width, image_width) - max(x, 0))
    inner_height = max(0, min(y + height, image_height) - max(y, 0))
    if width < 1 or height < 1 or area <= 0:
        return "no-area"
    return None if inner_width * inner_height else "outside"


def _mask_fault(annotation: dict, size: tuple[int, int], scored: bool) -> str | None:
    """What is wrong with a mask on an image of (width, height); `scored`: not only loaded."""
    mask = annotation.get("segmentation")
    if not mask:
        return "no-mask"
    if isinstance(mask, dict):
        if not isinstance(mask.get("counts"), list | str) or mask.get("size") is None:
            return "unscorable-mask" if scored else "bad-rle"
        if mask["size"] != [*size[::-1]]:
            return "rle-size"
        return None if is_whole(mask) else "broken-rle"
    if not isinstance(mask, list) or not all(
        isinstance(one, list) and _are_finite(one) for one in mask
    ):
        return "bad-polygon"
    # the first tells pycocotools what they are: of more than four numbers, polygons
    if scored and len(mask[0]) <= 4:
        return "unscorable-mask"
    usable = sum(map(_is_usable, mask))
    if usable == len(mask):
        return None
    return "short-part" if usable else "short-polygons"


def _is_usable(polygon: Sequence[float]) -> bool:
    """Whether mmdet takes a polygon: whole points, and at least three."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def _are_finite(values: list) -> bool:
    """Whether values are numbers that can be coordinates or areas."""
    if not values:
        return True
    if not set(map(type, values)) <= {int, float}:
        return False
    # whole numbers in json have no limit, and huge ones cannot be summed with floats
    is_small = -_LARGEST < min(values) and max(values) < _LARGEST
    return is_small and math.isfinite(sum(values))


def are_finite_box(box: object) -> bool:
    """Whether a `bbox` is four numbers that can be coordinates."""
    return isinstance(box, list) and len(box) == 4 and _are_finite(box)


def is_whole(rle: dict) -> bool:
    """Whether the runs of an RLE fill its size; pycocotools reads memory behind them if not."""
    height, width = rle["size"]
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = _runs(counts)
    if not counts or not all(isinstance(one, int) for one in counts):
        return False
    return min(counts) >= 0 and sum(counts) == height * width


def _runs(counts: str) -> list[int]:
    """The runs in pycocotools' compressed form, as Python's integers; none if it is not that.

    A run has 5 bits in each character, the lowest first, counted from "0"; 32 means "goes on", and
    16 in the last one is the sign. From the fourth run on it is the difference to the run two
    before.
    """
    codes = np.frombuffer(counts.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    is_last = codes & 32 == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not is_last[-1]:
        return []
    ends = np.flatnonzero(is_last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        return []
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs.tolist()


def shape_faults(annotation: dict, size: tuple[int, int], masks: bool) -> list[str]:
    """Look at an annotation that mmdet keeps: the kinds of `SHAPES` that hold.

    Args:
        annotation: With a valid `bbox`.
        size: (height, width) of its image, in pixels.
        masks: Whether masks are used.
    """
    from pycocotools import mask as rle_masks  # as shapely, required by mmdet alone
    from shapely import Polygon, make_valid

    x, y, width, height = annotation["bbox"]
    faults = ["beyond"] if max(-x, -y, x + width - size[1], y + height - size[0]) > _BEYOND else []
    mask = annotation.get("segmentation")
    if annotation.get("iscrowd"):
        return faults
    if isinstance(mask, dict):
        sound = masks or _mask_fault(annotation, size[::-1], True) is None
        whole = isinstance(mask.get("counts"), str) and sound
        counts = mask["counts"] if isinstance(mask.get("counts"), list) and sound else []
        area = float(rle_masks.area(mask)) if whole else float(sum(counts[1::2]))
        return faults + (["area"] if area and _differ(annotation["area"], area) else [])
    polygons = [one for one in mask or () if isinstance(one, list) and _is_usable(one)]
    if not polygons:
        box = width * height
        # an area may be that of a mask that is not there
        apart = not 0.1 * box - _SLACK < annotation["area"] < 1.5 * box + _SLACK
        return faults + (["area"] if apart else [])
    shapes = [Polygon(zip(one[::2], one[1::2], strict=True)) for one in polygons]
    enclosed = sum(shape.area for shape in shapes)
    if any(abs(make_valid(one).area - one.area) > _NOTHING for one in shapes):
        area_faults = ["crossing"]  # the halves of a bow tie cancel each other in the area
    elif enclosed < _NOTHING:
        area_faults = ["no-mask-area"]
    else:
        area_faults = ["area"] if _differ(annotation["area"], enclosed) else []
    if not masks:
        return faults + [one for one in area_faults if one == "area"]
    ends = np.array([shape.bounds for shape in shapes])
    bounds = (*ends[:, :2].min(0), *ends[:, 2:].max(0))
    overlap = _overlap(bounds, (x, y, x + width, y + height))
    if overlap < 0.9 < _overlap(bounds, annotation["bbox"]):
        area_faults.append("corner-box")
    elif overlap < 0.5:
        area_faults.append("box-mask")
    return faults + area_faults


def _differ(area: float, enclosed: float) -> bool:
    return abs(area - enclosed) > _SLACK and not 0.5 < area / enclosed < 2


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 1 for two without area."""
    sides = (min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))
    shared = max(0.0, sides[0]) * max(0.0, sides[1])
    both = sum((one[2] - one[0]) * (one[3] - one[1]) for one in (a, b)) - shared
    return shared / both if both else 1.0


def turned_by(boxes: Sequence[Sequence[float]], said: tuple[int, int]) -> str:
    """Which picture boxes are of, where EXIF swaps its sides: "turned", "unturned" or "".

    Args:
        boxes: (x1, y1, x2, y2) in pixels.
        said: (width, height) in the annotation file, those of the unturned picture.
    """
    ends = [max((box[i] for box in boxes), default=0) for i in (2, 3)]
    fits = {
        what: all(end <= side + _BEYOND for end, side in zip(ends, sides, strict=True))
        for what, sides in (("unturned", said), ("turned", said[::-1]))
    }
    return "" if fits["turned"] == fits["unturned"] else max(fits, key=lambda what: fits[what])


TURNED = {
    "unturned": "the boxes are of the unturned picture: take the EXIF orientation out of the file, "
    "or load it with LoadImageFromFile(color_type='color_ignore_orientation')",
    "turned": "the boxes are of the turned picture: swap width and height in the annotation file",
    "": "whether the boxes are of the turned picture is not to be told: if so, swap width and "
    "height in the annotation file, else take the EXIF orientation out of the file "
    "(tools/browse_dataset.py shows them)",
}
"""What to do about a picture that EXIF turns and whose annotations have the other size."""
