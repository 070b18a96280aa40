"""Check of a data set in COCO format: its file, classes, images and, in full, shapes."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from mmengine.registry import METRICS

from .coco_file import read_coco
from .coco_rules import (
    ANNOTATIONS,
    SCORED,
    SHAPES,
    TURNED,
    CocoUse,
    annotation_cases,
    are_finite_box,
    shape_faults,
    turned_by,
)
from .findings import IMAGES, Finding, Table, files, findings, hint, some
from .images import ImageFacts
from .options import Listing, class_of, image_loader, option, transform
from .report import Report

_SAMPLE = 500  # annotations whose area the quick check looks at
_BACKGROUND = "count as images in which nothing is there"
_SIZES: Table = {
    "turned-size": (
        "error", "are turned by the loader, as their EXIF orientation says, and annotated unturned",
        TURNED["unturned"],
    ),
    "turned-sides": (
        "error", "are turned by the loader, as their EXIF orientation says, and have the sides of "
        "the file in the annotations", TURNED["turned"],
    ),
    "turned-unknown": (
        "error", "are turned by the loader, as their EXIF orientation says, and have the sides of "
        "the file in the annotations", TURNED[""],
    ),
    "size": (
        "error", "are of another size than the annotation file says", "boxes and masks do not "
        "fit them; use the pictures that were annotated, or correct height and width",
    ),
}  # fmt: skip
_TURNED_KINDS = {"unturned": "turned-size", "turned": "turned-sides", "": "turned-unknown"}


def check(found: Report, where: str, dataset: dict, kind: type, root: str) -> None:
    """Check an annotation file against its images and classes; `kind`: the data set's class."""
    folder = os.path.join(root, (dataset.get("data_prefix") or {}).get("img", ""))
    folder_there = os.path.isdir(folder)
    if not folder_there:
        found.missing(where, "data_prefix.img", folder, "image folder")
    path = os.path.join(root, dataset.get("ann_file", ""))
    split = where.partition("_")[0]
    found.ann_files.setdefault(split, []).append(path)
    content = read(found, where, f"{where}.ann_file", path)
    if content is None:
        return
    names = [image["file_name"] for image in content["images"]]
    if not names:
        found.error(where, "no-images", f"{where}: {path!r} lists no image")
    gone = found.absent(where, "data_prefix.img", names, path, folder) if folder_there else []
    use = _use(found, where, dataset, kind, path)
    if content.get("annotations"):
        found.findings += _classes(content, use)
    found.findings += _ids(content, use)
    cases = annotation_cases(content, use)
    found.findings += _annotations(content, use, cases)
    found.findings += _images(content, use, cases)
    if folder_there:
        there = tuple(sorted(set(names).difference(gone)))
        loader = image_loader(dataset)
        found.listings.append(Listing(where, folder, there, *loader, use, content=content))


def check_evaluators(found: Report, split: str) -> None:
    """See that evaluators of a split read the annotation file of their loader."""
    scope = found.cfg.get("default_scope")
    for metric in metrics_of(found.cfg.get(f"{split}_evaluator")):
        path = metric.get("ann_file")
        remote = "://" in (path or "") or metric.get("backend_args")
        if not path or remote or not is_coco_metric(metric, scope):
            continue
        where = f"{split}_evaluator.ann_file"
        loaders = found.ann_files.get(split, [])
        real = {os.path.realpath(file) for file in loaders}
        if (
            read(found, where, where, path) is not None
            and loaders
            and os.path.realpath(path) not in real
        ):
            found.error(
                where,
                "other-ann-file",
                f"{where}: {path!r} is not the file of {split}_dataloader "
                f"({', '.join(map(repr, loaders))}): give both the same",
            )


def read(found: Report, where: str, key: str, path: str) -> dict | None:
    """The content of a COCO file, or None after noting the problem."""
    real = os.path.realpath(path)
    if real not in found.coco:
        found.coco[real] = read_coco(path)
    content = found.coco[real]
    if isinstance(content, dict):
        return content
    found.error(where, "not-coco", f"{key}: {path!r} {content}{hint(path)}")
    return None


def is_coco_metric(metric: dict, scope: str | None) -> bool:
    """Whether a metric reads the file as mmdet's CocoMetric does."""
    kind = class_of(metric, scope, METRICS)
    for base in getattr(kind, "__mro__", ()):
        if base.__name__ == "CocoMetric":
            return kind.__init__ is base.__init__ and kind.compute_metrics is base.compute_metrics
    return False


def metrics_of(evaluator: Any) -> list[dict]:
    """The configs of an evaluator's metrics."""
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    return [metric for metric in metrics if isinstance(metric, dict)]


def has_scorable_id(annotation: dict) -> bool:
    """Whether pycocotools can keep an annotation's id among its matches."""
    return isinstance(annotation["id"], int) and annotation["id"] != 0


def _use(found: Report, where: str, dataset: dict, kind: type, path: str) -> CocoUse:
    base = next(base for base in kind.__mro__ if base.__name__ == "CocoDataset")
    filters = dataset.get("filter_cfg") or {}
    own_filter = getattr(kind, "filter_data", None) is not base.filter_data
    if own_filter or option(dataset, kind, "test_mode", False):
        filters = {}
    evaluator = found.cfg.get(f"{where.partition('_')[0]}_evaluator")
    evaluated = not where.startswith("train")
    loads_masks = bool(transform(dataset.get("pipeline"), "LoadAnnotations").get("with_mask"))
    # tools/data/check_dataset.py has no metric for files without a config
    scored = any("segm" in (metric.get("metric") or ()) for metric in metrics_of(evaluator))
    scores_masks = evaluated and (scored if evaluator else loads_masks)
    return CocoUse(
        where,
        path,
        found.classes.get(where, ()),
        masks=loads_masks or scores_masks,
        filter_empty=bool(filters.get("filter_empty_gt")),
        min_size=filters.get("min_size", 0),
        evaluated=evaluated,
        scores_masks=scores_masks,
    )


def _classes(content: dict, use: CocoUse) -> Iterator[Finding]:
    """Whether the file has the classes, each once, and in their order."""
    categories = [category["name"] for category in content["categories"]]
    unknown = [name for name in use.classes if name not in categories]
    order = [name for name in categories if name in use.classes]
    trailing = list(use.classes[: len(use.classes) - len(unknown)]) == order
    last = unknown and trailing and not use.evaluated and len(unknown) < len(use.classes)
    twice = [name for name in dict.fromkeys(order) if order.count(name) > 1]
    moved = not (twice or unknown) and order != list(use.classes)
    where = f"{use.where}.metainfo.classes"
    cases = {
        "category-twice": twice,
        # the others keep their numbers
        "unused-class": unknown if last else (),
        "absent-class": () if last else unknown,
        "class-order": [order] if moved else (),
    }
    table: Table = {
        "category-twice": (
            "error", "are categories more than once", "mmdet counts each as a class of its own, "
            "and has more labels than classes; give each its own name, or one category_id to all",
        ),
        "unused-class": (
            "warning", "are not among the categories, and the last", "nothing is learned of them",
        ),
        "absent-class": (
            "error", f"are not among the categories ({some(categories)})",
            "mmdet would silently leave them out",
        ),
        "class-order": (
            "error", f"({some(use.classes)}) is in another order than that of the categories",
            "mmdet labels by the file's order: put the classes in that order",
        ),
    }  # fmt: skip
    yield from findings(table, cases, where, use.ann_file, len(use.classes), "class")


def _ids(content: dict, use: CocoUse) -> Iterator[Finding]:
    """Ids that occur twice, that pycocotools cannot score, and that the categories do not list."""
    where, annotations = f"{use.where}.ann_file", content.get("annotations", [])
    copied = "tools/train.py and tools/test.py read a copy with other ids"
    own = "give each an id of its own"
    for key, severity, effect in (
        ("images", "error", f"all but one would be lost; {own}"),
        ("annotations", "note", f"mmdet refuses them; {copied}"),
        ("categories", "error", f"all but one would be lost; {own}"),
    ):
        kind, listed = f"{key}-id-twice", content.get(key, [])
        counts = Counter(one["id"] for one in listed)
        cases = {kind: [str(one) for one, count in counts.items() if count > 1]}
        table = {kind: (severity, f"are ids of several {key}", effect)}
        yield from findings(table, cases, where, use.ann_file, len(counts), "id")
    known = {str(category["id"]) for category in content.get("categories", [])}
    unlisted = [one for one in annotations if str(one["category_id"]) not in known]
    unscorable = [one for one in annotations if not has_scorable_id(one)]
    cases = {
        "annotation-twice": repeated(annotations),
        "unlisted-category": [f"{one['category_id']} of id {one['id']}" for one in unlisted],
        "id-0": [f"id {one['id']}" for one in unscorable] if use.evaluated else [],
    }
    table = {
        "annotation-twice": (
            "error", "are there more than once with all they say", "one object or several is not "
            "to be told; take the repetitions out",
        ),
        "unlisted-category": (
            "error", "have a category_id that the categories do not list", "mmdet would silently "
            "leave them out; list the categories, or correct the ids",
        ),
        "id-0": (
            "note", "have an id that pycocotools cannot score, 0 ('not matched' to it) or text",
            f"{copied}; for other tools number the annotations from 1",
        ),
    }  # fmt: skip
    yield from findings(table, cases, where, use.ann_file, len(annotations), "annotation")


def repeated(annotations: list[dict]) -> list[str]:
    """Ids of annotations that are there again with all that they say."""
    counts = Counter(one["id"] for one in annotations)
    suspects = Counter(
        (str(one["id"]), json.dumps(one, sort_keys=True, default=str))
        for one in annotations
        if counts[one["id"]] > 1
    )
    return [name for (name, _), count in suspects.items() if count > 1]


def _annotations(content: dict, use: CocoUse, cases: dict[str, list]) -> Iterator[Finding]:
    """What stops mmdet and what it leaves out, and the areas of some annotations."""
    images = {image["id"]: image for image in content["images"]}
    table = dict(ANNOTATIONS)
    for kind in SCORED if use.evaluated else ():
        severity, what, effect, _ = table[kind]
        table[kind] = severity, what, f"{effect}; scores count them as objects all the same"
    names = {kind: [_name(one, images) for one in cases.get(kind, ())] for kind in table}
    place = f"{use.where}.ann_file", use.ann_file
    yield from findings(table, names, *place, len(content.get("annotations", [])), "annotation")
    if use.evaluated:
        sample = cases["kept"][:: -(-len(cases["kept"]) // _SAMPLE) or 1]
        apart = [
            _name(one, images) for one in sample if "area" in _shapes(_item(one, images), use.masks)
        ]
        yield from findings(SHAPES, {"area": apart}, *place, len(sample), "annotation")


def _name(annotation: dict, images: dict) -> str:
    image = images.get(annotation["image_id"])
    return f"id {annotation['id']}" + (f" of {image['file_name']!r}" if image else "")


def _item(annotation: dict, images: dict) -> tuple[dict, tuple[int, int]]:
    image = images[annotation["image_id"]]
    return annotation, (image["height"], image["width"])


def _shapes(item: tuple[dict, tuple[int, int]], masks: bool) -> list[str]:
    return shape_faults(*item, masks)


def _images(content: dict, use: CocoUse, cases: dict[str, list]) -> Iterator[Finding]:
    """Images without anything to learn from, small ones, and those that are listed twice."""
    wanted = {one["id"] for one in content.get("categories", []) if one["name"] in use.classes}
    # mmdet looks at what is left out for other reasons as well
    annotations = content.get("annotations", [])
    annotated = {one["image_id"] for one in annotations if one["category_id"] in wanted}
    kept = {one["image_id"] for one in cases["kept"]}
    empty, small, bare, remaining = [], [], [], 0
    for image in content["images"]:
        is_empty = image["id"] not in annotated
        is_small = min(image["height"], image["width"]) < use.min_size
        if is_empty:
            empty.append(image["file_name"])
        elif image["id"] not in kept:
            bare.append(image["file_name"])
        if is_small:
            small.append(image["file_name"])
        remaining += not (is_small or (is_empty and use.filter_empty))
    counts = Counter(os.path.normpath(image["file_name"]) for image in content["images"])
    none_left = content["images"] and wanted and not remaining
    out = dict.fromkeys([*(empty if use.filter_empty else ()), *small])
    found = {
        "no-image-left": list(out) if none_left else (),
        "file-name-twice": [name for name, count in counts.items() if count > 1],
        "no-annotation": empty,
        "nothing-left": bare,
        "min-size": small,
    }
    table: Table = {
        "no-image-left": (  # on a data set of no image mmengine stops with a message of numpy's
            "error", f"are left out by mmdet, and nothing is left: {len(empty)} have no annotation "
            f"of the classes (filter_cfg.filter_empty_gt), {len(small)} have a side of fewer than "
            f"{use.min_size} pixels (filter_cfg.min_size)",
            "annotate them, or correct metainfo.classes or filter_cfg",
        ),
        "file-name-twice": (
            "warning", "are listed more than once", "each entry is an image of its own, in which "
            "the objects of the others count as background; give all annotations of a picture one "
            "image_id",
        ),
        "no-annotation": (
            "warning", "have no annotation of the classes", "mmdet leaves them out "
            "(filter_cfg.filter_empty_gt); set it to False to learn that nothing is there",
            "without annotations of the classes",
        ) if use.filter_empty else (
            "note", "have no annotation of the classes", f"they {_BACKGROUND}",
        ),
        "nothing-left": (
            "warning", "have annotations, but none that mmdet keeps", f"they {_BACKGROUND}",
        ),
        "min-size": (
            "warning", f"have a side of fewer than {use.min_size} pixels",
            "mmdet leaves them out (filter_cfg.min_size)",
            f"with a side below {use.min_size} pixels",
        ),
    }  # fmt: skip
    where, count = f"{use.where}.ann_file", len(content["images"])
    yield from findings(table, found, where, use.ann_file, count, "image")


def survey(listing: Listing, images: Sequence[ImageFacts], run: Callable) -> list[Finding]:
    """What is wrong between pictures and annotations, or in the shapes of annotations."""
    content, use = listing.content or {}, listing.use
    by_id = {one["id"]: one for one in content["images"]}
    by_name = {one["file_name"]: one for one in content["images"]}
    boxes = defaultdict(list)
    cases: dict[str, list[str]] = defaultdict(list)
    kept = annotation_cases(content, use)["kept"]
    for one in content.get("annotations", []):  # also those that mmdet takes to lie outside
        if are_finite_box(one.get("bbox")):
            x, y, width, height = one["bbox"]
            boxes[one["image_id"]].append((x, y, x + width, y + height))
    for name, facts in zip(listing.names, images, strict=True):
        said = by_name[name]["width"], by_name[name]["height"]
        if not facts.fault and said != facts.loaded[::-1]:
            kind = "size"
            if facts.sides_swapped and said == facts.loaded:
                kind = _TURNED_KINDS[turned_by(boxes[by_name[name]["id"]], said)]
            sides = f"{facts.loaded[1]}x{facts.loaded[0]}"
            cases[kind].append(f"{name} ({said[0]}x{said[1]} in the file, the picture is {sides})")
    total = len(listing.names)
    found = list(findings(_SIZES, cases, use.where, listing.folder, total, "image"))
    items = [_item(one, by_id) for one in kept]
    function = partial(_shapes, masks=use.masks)
    every = run(f"annotations of {use.where}", function, items)
    for annotation, faults in zip(kept, every, strict=True):
        for fault in faults:
            cases[fault].append(_name(annotation, by_id))
    found += findings(SHAPES, cases, use.where, use.ann_file, len(kept), "annotation")

    names = {one["id"]: one["name"] for one in content.get("categories", [])}
    there = {names[one["category_id"]] for one in kept}
    lost = ("note", "have no score") if use.evaluated else ("warning", "nothing is learned of them")
    table: Table = {
        "unused-class": (lost[0], "have no annotation", lost[1]),
        "unlisted-image": (
            "note",
            "are pictures in the folder that are not listed",
            "they are not used",
        ),
    }
    unused = {"unused-class": [name for name in use.classes if name not in there]}
    found += findings(table, unused, use.where, use.ann_file, len(use.classes), "class")
    listed = {os.path.normpath(name) for name in by_name}
    others = sorted(files(listing.folder, IMAGES, any_case=True))
    unlisted = {"unlisted-image": [name for name in others if name not in listed]}
    found += findings(table, unlisted, use.where, use.ann_file, len(others), "file")
    return found
