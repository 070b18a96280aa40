"""Check of a data set in COCO format: its file, classes, images, annotations and, in full, shapes.

mmdet leaves out annotations and images without a word (`CocoDataset.parse_data_info` and
`filter_data`, `LoadAnnotations._process_masks`), and pycocotools stops at others when it scores;
here the same conditions are counted.
"""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from mmengine.registry import METRICS

from vig_mm.datasets.files import IMAGES, files, some

from ..config import metrics_of
from .coco_file import read_coco
from .data_set import DataSet, Report, base_of, class_of, hint, rules
from .images import ImageFacts

_SAMPLE = 500  # annotations whose area the quick check looks at
_LARGEST = 2**31  # pycocotools draws with 32-bit integers
_LONGEST = 12  # characters of a run of an RLE that fits 60 bits
_BEYOND = 1.0  # pixels; COCO's own boxes end up to one behind the edge
_NOTHING = 1e-3  # pixels, what rounding leaves of points in a line
_SLACK = 16.0  # pixels, by which small areas may be off

_BOX = "bbox is [x, y, width, height] in pixels, from the upper left corner"
_COPY = "tools/train.py and tools/test.py read a copy"
_NOTHING_THERE = "they count as images in which nothing is there"
_TURNED = "are turned by the loader, as their EXIF orientation says"
_RULES = rules(f"""
error class category-twice | are categories more than once | mmdet counts each as a class of its
    own, and has more labels than classes; give each its own name, or one category_id to all
warning class unused-class/last | are no categories, and the last | nothing is learned of them
error class absent-class | are no categories ({{categories}}) | mmdet would silently leave them out
error class class-order | ({{classes}}) are in another order than the categories | mmdet labels by
    the file's order: put the classes in that order
error image images-id-twice | share their id | all but one would be lost; give each its own
error category categories-id-twice | share their id | all but one would be lost; give each its own
note annotation annotations-id-twice | share their id | mmdet refuses them; {_COPY} with other ids
error annotation annotation-twice | are there more than once with all they say | one object or
    several is not to be told; take the repetitions out
error annotation unlisted-category | have a category_id that the categories do not list | mmdet
    would silently leave them out; list the categories, or correct the ids
note annotation id-0 | have an id that pycocotools cannot score, 0 ('not matched' to it) or text |
    {_COPY} with other ids; for other tools number the annotations from 1
error annotation incomplete | have no bbox, or no area | mmdet or pycocotools stops; write both
    (area is that of the mask, or width * height)
error annotation bad-box | have a bbox that is not four finite numbers, or no finite area | {_BOX}
error annotation no-mask | have no segmentation, and masks are loaded or scored | mmdet or
    pycocotools stops; take them out, or draw them, or use a box detector with
    LoadAnnotations(with_mask=False) and metric='bbox'
error annotation unscorable-mask | have a first polygon of fewer than three points, or an RLE
    without counts and size | pycocotools stops; draw them again, or take them out
error annotation bad-crowd | have an iscrowd that is neither 0 nor 1 | pycocotools takes any text
    for a 1; write iscrowd=0, or 1 for a region of many objects
note annotation no-crowd | have no iscrowd | pycocotools stops: {_COPY} in which it is 0
error annotation bad-polygon | have a segmentation that is neither a list of polygons
    [[x1, y1, ...], ...] nor an RLE | mmdet stops; correct them
error annotation rle-size | have an RLE of another size than their image's height and width | it is
    no mask of that image; correct the RLE or the image's entry
error annotation broken-rle | have an RLE whose runs do not fill its size | the mask would be what
    is in memory, and scoring may never end; write them again (pycocotools.mask.encode)
error annotation text-id | have an image_id or a category_id that is text where the list has a
    number, or the other way round | mmdet leaves them out; write ids as numbers everywhere
warning annotation no-image | are of images that are not listed | mmdet leaves them out; list the
    images, or take the annotations out | of images that are not listed
warning annotation ignored | are marked ignore=1 | mmdet leaves them out{{scored}}; for a region of
    many objects write iscrowd=1 and an RLE | marked ignore=1
warning annotation outside | have a box outside their image | mmdet leaves them out{{scored}};
    {_BOX} | with a box outside the image
warning annotation no-area | have a box narrower than a pixel, or no area | mmdet leaves them
    out{{scored}}; correct them, or take them out | with a box narrower than a pixel, or no area
warning annotation other-class | are of categories that are not among the classes | mmdet leaves
    them out; if that is not meant, add the names to metainfo.classes | of other classes
warning annotation short-polygons | have no polygon of three points or more | mmdet leaves them
    out{{scored}}; draw them again | with no polygon of three points
warning annotation bad-rle | have an RLE without counts and size | mmdet leaves them out{{scored}};
    write both | with an RLE that lacks counts or size
warning annotation rotated | have attributes.rotation | bbox is the box before it was turned, as
    CVAT exports it; export polygons, or take the turned ones out
note annotation crowd | are crowds (iscrowd=1) | regions of many objects: training leaves them out,
    and in scores neither found nor missed counts | marked iscrowd=1
note annotation short-part | have a polygon of fewer than three points among others | mmdet leaves
    out these polygons and keeps the annotations
error image no-image-left | are left out by mmdet, and nothing is left: {{empty}} have no annotation
    of the classes (filter_cfg.filter_empty_gt), {{small}} have a side of fewer than {{min_size}}
    pixels (filter_cfg.min_size) | annotate them, or correct metainfo.classes or filter_cfg
warning image file-name-twice | are listed more than once | each entry is an image of its own, in
    which the others' objects are background; give a picture's annotations one image_id
warning image no-annotation | have no annotation of the classes | mmdet leaves them out
    (filter_cfg.filter_empty_gt); with False it learns that none is there | without annotations of
    the classes
note image no-annotation/kept | have no annotation of the classes | {_NOTHING_THERE}
warning image nothing-left | have annotations, but none that mmdet keeps | {_NOTHING_THERE}
warning image min-size | have a side of fewer than {{min_size}} pixels | mmdet leaves them out
    (filter_cfg.min_size) | with a side below {{min_size}} pixels
error annotation corner-box | have the lower right corner of their mask for the width and height of
    bbox | bbox is [x, y, width, height]
warning annotation no-mask-area | have polygons that enclose nothing | mmdet keeps them with a mask
    of a few pixels or none; draw them again, or take them out
warning annotation box-mask | have a box and a mask apart | both are learned so; correct one of them
warning annotation area | have an area that does not fit their polygons, RLE or box | scores of
    small, medium and large objects go by it; write the mask's area, or width * height
warning annotation crossing | have a polygon that crosses itself | what lies inside twice counts as
    outside; draw each part on its own where that is wrong
note annotation beyond | have a box that ends outside the image | mmdet clips it
warning class unused-class | have no annotation | nothing is learned of them
note class unused-class/scored | have no annotation | they have no score
note file unlisted-image | are pictures in the folder that are not listed | they are not used
error image size | are of another size than the annotation file says | boxes and masks do not fit;
    use the pictures that were annotated, or correct width and height in the annotation file
error image turned-size | {_TURNED}, and annotated unturned | the boxes are of the unturned picture:
    take the EXIF orientation out of the file, or load it with
    LoadImageFromFile(color_type='color_ignore_orientation')
error image turned-sides | {_TURNED}, and have the sides of the file | the boxes are of the turned
    picture: swap width and height in the annotation file
error image turned-unknown | {_TURNED}, and have the sides of the file | whether the boxes are of
    the turned picture is not to be told (tools/browse_dataset.py shows them): if so, swap width and
    height in the annotation file, else take the EXIF orientation out of the file
""")
SIZES = {kind: rule[3] for kind, rule in _RULES.items() if kind.startswith(("size", "turned"))}
"""Kind -> what to do about a picture whose annotations are for other sides."""


@dataclass(frozen=True)
class CocoUse:
    """How a data set uses an annotation file."""

    classes: tuple[str, ...]
    masks: bool  # whether its masks are loaded or scored
    filter_empty: bool = False  # `filter_empty_gt` of a data set that filters
    min_size: int = 0  # shortest side of an image, in pixels
    evaluated: bool = False  # whether it is scored on
    scores_masks: bool = False  # whether the metric reads its masks


def check(data: DataSet) -> None:
    """Check an annotation file against its images and classes."""
    path = data.path(data.ann_file)
    folder = data.path((data.entry.get("data_prefix") or {}).get("img"))
    is_there = data.has_folder(".data_prefix.img", folder, "image folder")
    data.report.ann_files.setdefault(data.split, []).append(path)
    content = read(data, path)
    if content is None:
        return
    names = [image["file_name"] for image in content["images"]]
    if not names:
        data.add("no-images", f"{path!r} lists no image")
    use = _use(data)
    _check_content(data, content, use, path)
    if is_there:
        gone = data.absent(".data_prefix.img", names, path, folder)
        data.list_files(folder, sorted(set(names).difference(gone)), use=use, content=content)


def check_evaluators(report: Report, split: str) -> None:
    """See that evaluators of a split read the annotation file of their loader."""
    loaders = report.ann_files.get(split, [])
    for metric in scoring_metrics(report.cfg, split):
        data, path = DataSet(report, f"{split}_evaluator", metric, object), metric["ann_file"]
        same = os.path.realpath(path) in map(os.path.realpath, loaders)
        if not metric.get("backend_args") and read(data, path) and loaders and not same:
            names = ", ".join(map(repr, loaders))
            text = f"{path!r} is not the file of {split}_dataloader ({names}): give both the same"
            data.add("other-ann-file", text, key=".ann_file")


def read(data: DataSet, path: str) -> dict | None:
    """The content of a COCO file, or None after noting the problem."""
    real, known = os.path.realpath(path), data.report.coco
    content = known[real] = known[real] if real in known else read_coco(path)
    if isinstance(content, dict):
        return content
    data.add("not-coco", f"{path!r} {content}{hint(path)}", key=".ann_file")
    return None


def scoring_metrics(cfg: dict, split: str) -> Iterator[dict]:
    """The configs of those metrics that read a local annotation file as mmdet's CocoMetric does."""
    for metric in metrics_of(cfg, split):
        kind = class_of(metric, cfg.get("default_scope"), METRICS)
        reads = base_of(kind, "CocoMetric", "__init__", "compute_metrics")
        if reads and metric.get("ann_file") and "://" not in metric["ann_file"]:
            yield metric


def has_scorable_id(annotation: dict) -> bool:
    """Whether pycocotools can keep an annotation's id among its matches."""
    return isinstance(annotation["id"], int) and annotation["id"] != 0


def _use(data: DataSet) -> CocoUse:
    filters = data.entry.get("filter_cfg") or {}
    if not base_of(data.kind, "CocoDataset", "filter_data") or data.option("test_mode"):
        filters = {}
    evaluated, metrics = data.split != "train", metrics_of(data.cfg, data.split)
    loads_masks = bool(data.load.get("with_mask"))
    # tools/data/check_dataset.py has no metric for files without a config
    scored = any("segm" in (metric.get("metric") or ()) for metric in metrics)
    has_evaluator = data.cfg.get(f"{data.split}_evaluator")
    scores_masks = evaluated and (scored if has_evaluator else loads_masks)
    return CocoUse(
        data.classes,
        masks=loads_masks or scores_masks,
        filter_empty=bool(filters.get("filter_empty_gt")),
        min_size=filters.get("min_size", 0),
        evaluated=evaluated,
        scores_masks=scores_masks,
    )


def _check_content(data: DataSet, content: dict, use: CocoUse, path: str) -> None:
    """What is wrong with a file by itself, and the areas of some annotations."""
    images, annotations = content["images"], content.get("annotations", [])
    by_id = {image["id"]: image for image in images}
    kept, found = annotation_cases(content, use)
    cases = {kind: [_name(one, by_id) for one in every] for kind, every in found.items()}
    cases |= _id_cases(content, use) | _image_cases(content, use, kept)
    categories = [category["name"] for category in content.get("categories", [])]
    if annotations:
        cases |= _class_cases(categories, use)
    said = {"class": len(use.classes), "image": len(images), "annotation": len(annotations)}
    said |= dict(categories=some(categories), classes=some(use.classes), category=len(categories))
    said |= dict(empty=len(cases["no-annotation"]), small=len(cases["min-size"]))
    scored = "; scores count them as objects all the same" if use.evaluated else ""
    if not use.filter_empty:
        cases["no-annotation/kept"] = cases.pop("no-annotation")
    data.judge(_RULES, cases, path, **said, min_size=use.min_size, scored=scored)
    if use.evaluated:
        sample = [(one, by_id[one["image_id"]]) for one in kept[:: -(-len(kept) // _SAMPLE) or 1]]
        apart = [_name(x[0], by_id) for x in sample if "area" in shape_faults(x, use.masks)]
        data.judge(_RULES, {"area": apart}, path, annotation=len(sample))


def _class_cases(categories: list[str], use: CocoUse) -> dict[str, Sequence[str]]:
    """Whether the file has the classes, each once, and in their order."""
    there, wanted = Counter(categories), set(use.classes)
    unknown = [name for name in use.classes if name not in there]
    order = [name for name in categories if name in wanted]
    trailing = list(use.classes[: len(use.classes) - len(unknown)]) == order
    # the others keep their numbers
    last = trailing and not use.evaluated and len(unknown) < len(use.classes)
    twice = [name for name in dict.fromkeys(order) if there[name] > 1]
    moved = not (twice or unknown) and order != list(use.classes)
    return {
        "category-twice": twice,
        "unused-class/last" if last else "absent-class": unknown,
        "class-order": order if moved else (),
    }


def _id_cases(content: dict, use: CocoUse) -> dict[str, list[str]]:
    """Ids that occur twice, that pycocotools cannot score, and that the categories do not list."""
    annotations, cases = content.get("annotations", []), {}
    for key in ("images", "categories", "annotations"):
        counts = Counter(one["id"] for one in content.get(key, []))
        cases[f"{key}-id-twice"] = [f"id {one}" for one, count in counts.items() if count > 1]
    said = Counter(
        (one["id"], json.dumps(one, sort_keys=True, default=str))
        for one in annotations
        if counts[one["id"]] > 1
    )
    cases["annotation-twice"] = [name for (name, _), count in said.items() if count > 1]
    known = {str(category["id"]) for category in content.get("categories", [])}
    unlisted = [one for one in annotations if str(one["category_id"]) not in known]
    cases["unlisted-category"] = [f"{one['category_id']} of id {one['id']}" for one in unlisted]
    unscorable = [one for one in annotations if use.evaluated and not has_scorable_id(one)]
    cases["id-0"] = [f"id {one['id']}" for one in unscorable]
    return cases


def _image_cases(content: dict, use: CocoUse, kept: list[dict]) -> dict[str, list[str]]:
    """Images without anything to learn from, small ones, and those that are listed twice."""
    wanted = {one["id"] for one in content.get("categories", []) if one["name"] in use.classes}
    # mmdet looks at what is left out for other reasons as well
    annotations, images = content.get("annotations", []), content["images"]
    annotated = {one["image_id"] for one in annotations if one["category_id"] in wanted}
    full = {one["image_id"] for one in kept}
    cases = {
        "no-annotation": [one for one in images if one["id"] not in annotated],
        "nothing-left": [one for one in images if one["id"] in annotated - full],
        "min-size": [one for one in images if min(one["height"], one["width"]) < use.min_size],
    }
    out = [*(cases["no-annotation"] if use.filter_empty else ()), *cases["min-size"]]
    if wanted and {one["id"] for one in images} <= {one["id"] for one in out}:
        cases["no-image-left"] = images
    counts = Counter(os.path.normpath(image["file_name"]) for image in images)
    twice = [name for name, count in counts.items() if count > 1]
    named = {kind: [one["file_name"] for one in every] for kind, every in cases.items()}
    return named | {"file-name-twice": twice}


def annotation_cases(content: dict, use: CocoUse) -> tuple[list[dict], dict[str, list[dict]]]:
    """The annotations that mmdet keeps, and those of each kind.

    What mmdet leaves out can be of a second kind, an error: scoring reads it all the same.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    listed = {one["id"]: one["name"] for one in content.get("categories", [])}
    wanted = {key for key, name in listed.items() if name in use.classes}
    texts = [{str(key) for key in keys} for keys in (sizes, listed)]
    kept, cases = [], defaultdict(list)
    for annotation in content.get("annotations", []):
        image, category = annotation["image_id"], annotation["category_id"]
        is_wanted = category in wanted
        is_scored = use.evaluated and is_wanted and image in sizes
        kind = _box_case(annotation, sizes, is_scored)
        if kind is None and not is_wanted:
            # unlisted ones are reported with the ids
            kind = "other-class" if category in listed else "unlisted"
        if (image not in sizes and str(image) in texts[0]) or (
            category not in listed and str(category) in texts[1]
        ):
            kind = "text-id"
        mask = None
        if (use.masks and kind is None) or (use.scores_masks and is_scored):
            mask = _mask_fault(annotation, sizes[image], use.scores_masks)
        is_kept, crowd = kind is None and mask in (None, "short-part"), annotation.get("iscrowd")
        kinds = {
            kind: kind is not None,
            mask: mask is not None and (kind is None or _RULES[mask][0] == "error"),
            "rotated": is_kept and (annotation.get("attributes") or {}).get("rotation"),
            "crowd": is_kept and crowd == 1,
            "no-crowd": is_scored and crowd is None,  # training takes none for 0
            "bad-crowd": (is_scored or is_kept) and crowd not in (None, 0, 1),
        }
        for one in (one for one, holds in kinds.items() if holds):
            cases[one].append(annotation)
        if is_kept:
            kept.append(annotation)
    return kept, cases


def _box_case(annotation: dict, sizes: dict, is_scored: bool) -> str | None:
    """mmdet's conditions, in its order; pycocotools reads the box in spite of ignore=1."""
    if annotation["image_id"] not in sizes:
        return "no-image"
    if annotation.get("ignore") and not is_scored:
        return "ignored"
    box, area = annotation.get("bbox"), annotation.get("area")
    if box is None or area is None:
        return "incomplete"
    if not (_is_box(box) and _are_finite([area])):
        return "bad-box"
    if annotation.get("ignore"):
        return "ignored"
    x, y, width, height = box
    if width < 1 or height < 1 or area <= 0:
        return "no-area"
    image_width, image_height = sizes[annotation["image_id"]]
    meets = min(x + width, image_width) > max(x, 0) and min(y + height, image_height) > max(y, 0)
    return None if meets else "outside"


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
    if not isinstance(mask, list) or not all(isinstance(x, list) and _are_finite(x) for x in mask):
        return "bad-polygon"
    # the first tells pycocotools what they are: of more than four numbers, polygons
    if scored and len(mask[0]) <= 4:
        return "unscorable-mask"
    usable = sum(map(_is_usable, mask))
    return None if usable == len(mask) else "short-part" if usable else "short-polygons"


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


def _is_box(box: object) -> bool:
    """Whether a `bbox` is four numbers that can be coordinates."""
    return isinstance(box, list) and len(box) == 4 and _are_finite(box)


def is_whole(rle: dict) -> bool:
    """Whether the runs of an RLE fill its size; pycocotools reads memory behind them if not."""
    (height, width), runs = rle["size"], _runs(rle["counts"])
    whole = bool(runs) and all(isinstance(one, int) and one >= 0 for one in runs)
    return whole and sum(runs) == height * width


def _runs(counts: str | list[int]) -> list[int]:
    """The runs of an RLE, which may be in pycocotools' compressed form; none if text is not that.

    A run has 5 bits in each character, the lowest first, counted from "0"; 32 means "goes on", and
    16 in the last one is the sign. From the fourth run on it is the difference to the run two
    before.
    """
    if isinstance(counts, list):
        return counts
    codes = np.frombuffer(counts.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(ends) or codes.min() < 0 or codes.max() > 63 or ends[-1] + 1 < len(codes):
        return []
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        return []
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs.tolist()


def shape_faults(item: tuple[dict, dict], masks: bool) -> list[str]:
    """What is wrong with the shapes of an annotation that mmdet keeps, by kind.

    `item`: the annotation, and the entry of its image; `masks`: whether masks are used.
    """
    from shapely import MultiPolygon, Polygon, make_valid  # required by mmdet alone

    annotation, image = item
    x, y, width, height = annotation["bbox"]
    ends = (-x, -y, x + width - image["width"], y + height - image["height"])
    faults = ["beyond"] if max(ends) > _BEYOND else []
    mask, area = annotation.get("segmentation"), annotation["area"]
    if annotation.get("iscrowd"):
        return faults
    if isinstance(mask, dict):
        if not masks and _mask_fault(annotation, (image["width"], image["height"]), True):
            return faults
        enclosed = sum(_runs(mask["counts"])[1::2])
        return faults + (["area"] if enclosed and _differ(area, enclosed) else [])
    polygons = [one for one in mask or () if isinstance(one, list) and _is_usable(one)]
    if not polygons:
        # an area may be that of a mask that is not there
        fits = 0.1 * width * height - _SLACK < area < 1.5 * width * height + _SLACK
        return faults + ([] if fits else ["area"])
    shapes = [Polygon(zip(one[::2], one[1::2], strict=True)) for one in polygons]
    enclosed = sum(shape.area for shape in shapes)
    # the halves of a bow tie cancel each other in the area
    crossing = any(abs(make_valid(one).area - one.area) > _NOTHING for one in shapes)
    if not crossing and enclosed >= _NOTHING and _differ(area, enclosed):
        faults.append("area")
    if not masks:
        return faults
    bounds = MultiPolygon(shapes).bounds
    overlap = _overlap(bounds, (x, y, x + width, y + height))
    corner = overlap < 0.9 < _overlap(bounds, annotation["bbox"])
    kinds = {
        "crossing": crossing,
        "no-mask-area": not crossing and enclosed < _NOTHING,
        "corner-box": corner,
        "box-mask": overlap < 0.5 and not corner,
    }
    return faults + [kind for kind, holds in kinds.items() if holds]


def _differ(area: float, enclosed: float) -> bool:
    return abs(area - enclosed) > _SLACK and not 0.5 < area / enclosed < 2


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    from shapely import box

    one, other = box(*a), box(*b)
    return one.intersection(other).area / (one.union(other).area or 1)


def turned_by(boxes: Sequence[Sequence[float]], said: tuple[int, int]) -> str:
    """The kind of boxes (x1, y1, x2, y2) of an image, said to be (width, height)."""
    right, below = (max((one[i] for one in boxes), default=0) - _BEYOND for i in (2, 3))
    unturned, turned = (right <= x and below <= y for x, y in (said, said[::-1]))
    return "turned-unknown" if turned == unturned else "turned-sides" if turned else "turned-size"


def _name(annotation: dict, images: dict) -> str:
    image = images.get(annotation["image_id"])
    return f"id {annotation['id']}" + (f" of {image['file_name']!r}" if image else "")


def survey(data: DataSet, images: Sequence[ImageFacts], run: Callable) -> None:
    """What is wrong between pictures and annotations, or in the shapes of annotations."""
    content, use, path = data.content, data.use, data.path(data.ann_file)
    by_id = {one["id"]: one for one in content["images"]}
    by_name = {one["file_name"]: one for one in content["images"]}
    boxes, sizes, cases = defaultdict(list), defaultdict(list), defaultdict(list)
    for one in content.get("annotations", []):  # also those that mmdet takes to lie outside
        if _is_box(one.get("bbox")):
            x, y, width, height = one["bbox"]
            boxes[one["image_id"]].append((x, y, x + width, y + height))
    for name, facts in zip(data.names, images, strict=True):
        said = by_name[name]["width"], by_name[name]["height"]
        if not facts.fault and said != facts.loaded[::-1]:
            turned = facts.sides_swapped and said == facts.loaded
            kind = turned_by(boxes[by_name[name]["id"]], said) if turned else "size"
            sides = "{1}x{0} in the file, the picture is {3}x{2}".format(*said[::-1], *facts.loaded)
            sizes[kind].append(f"{name} ({sides})")
    data.judge(_RULES, sizes, data.folder, image=len(images))
    kept, _ = annotation_cases(content, use)
    items = [(one, by_id[one["image_id"]]) for one in kept]
    every = run(f"annotations of {data.where}", partial(shape_faults, masks=use.masks), items)
    for annotation, faults in zip(kept, every, strict=True):
        for fault in faults:
            cases[fault].append(_name(annotation, by_id))
    names = {one["id"]: one["name"] for one in content.get("categories", [])}
    there = {names[one["category_id"]] for one in kept}
    unused = "unused-class/scored" if use.evaluated else "unused-class"
    cases[unused] = [name for name in use.classes if name not in there]
    others, listed = files(data.folder, IMAGES, any_case=True), set(map(os.path.normpath, by_name))
    cases["unlisted-image"] = [name for name in others if name not in listed]
    said = {"class": len(use.classes), "file": len(others), "annotation": len(kept)}
    data.judge(_RULES, cases, path, **said)
