"""Quick check of a data set in COCO format."""

import os
from typing import Any

from mmengine.registry import METRICS

from ..files.coco import read_coco
from ..files.coco_annotations import examine
from ..files.coco_repair import has_scorable_id
from ..findings import Finding, some
from ..listings import CocoListing, CocoUse
from ..paths import hint
from .options import image_loader, option, transform
from .report import Report


def check(found: Report, where: str, dataset: dict, kind: type, root: str) -> None:
    """Check an annotation file against its images and classes.

    Args:
        found: Takes the findings.
        where: Key of the data set in its config.
        dataset: Its config.
        kind: Its class.
        root: Its `data_root`.
    """
    classes = found.classes.get(where, ())
    folder = os.path.join(root, (dataset.get("data_prefix") or {}).get("img", ""))
    folder_there = os.path.isdir(folder)
    if not folder_there:
        found.missing(where, "data_prefix.img", folder, "image folder")

    path = os.path.join(root, dataset.get("ann_file", ""))
    found.ann_files.setdefault(where.partition("_")[0], []).append(path)
    content = _read(found, where, f"{where}.ann_file", path)
    if content is None:
        return
    names = [image["file_name"] for image in content["images"]]
    if not names:
        found.error(where, "no-images", f"{where}: {path!r} lists no image")
    gone = found.absent(where, "data_prefix.img", names, path, folder) if folder_there else []
    evaluator = found.cfg.get(f"{where.partition('_')[0]}_evaluator")
    use = _use(where, dataset, kind, path, classes, evaluator)
    _check_classes(found, use, content)
    _check_ids(found, use, content)
    found.findings += examine(content, use)
    if folder_there:
        there = tuple(sorted(set(names).difference(gone)))
        loader = image_loader(dataset)
        found.listings.append(CocoListing(where, folder, there, *loader, content, use))


def check_evaluators(found: Report, split: str, evaluator: Any) -> None:
    """See that evaluators read the annotation file of their loader.

    Args:
        found: Takes the findings, and has the loader's.
        split: "train", "val" or "test".
        evaluator: The config's `{split}_evaluator`.
    """
    scope = found.cfg.get("default_scope")
    for metric in metrics_of(evaluator):
        path = metric.get("ann_file")
        if (
            not path
            or "://" in path
            or metric.get("backend_args")
            or not is_coco_metric(metric, scope)
        ):
            continue
        where = f"{split}_evaluator.ann_file"
        loaders = found.ann_files.get(split, [])
        if _read(found, where, where, path) is not None and loaders:
            real = {os.path.realpath(file) for file in loaders}
            if os.path.realpath(path) not in real:
                found.error(
                    where,
                    "other-ann-file",
                    f"{where}: {path!r} is not the file of {split}_dataloader "
                    f"({', '.join(map(repr, loaders))}): give both the same",
                )


def _read(found: Report, where: str, key: str, path: str) -> dict | None:
    """The content of a COCO file, or None after noting the problem."""
    real = os.path.realpath(path)
    if real not in found.coco:
        found.coco[real] = read_coco(path)
    content = found.coco[real]
    if isinstance(content, dict):
        return content
    found.error(where, "not-coco", f"{key}: {path!r} {content}{hint(path)}")
    return None


def _use(
    where: str,
    dataset: dict,
    kind: type,
    ann_file: str,
    classes: tuple[str, ...],
    evaluator: Any,
) -> CocoUse:
    filters = dataset.get("filter_cfg") or {}
    own_filter = getattr(kind, "filter_data", None) is not _coco(kind).filter_data
    if own_filter or option(dataset, kind, "test_mode", False):
        filters = {}
    evaluated = not where.startswith("train")
    loads_masks = bool(transform(dataset.get("pipeline"), "LoadAnnotations").get("with_mask"))
    # tools/data/check_dataset.py has no metric for files without a config
    scored = any("segm" in (metric.get("metric") or ()) for metric in metrics_of(evaluator))
    scores_masks = evaluated and (scored if evaluator else loads_masks)
    return CocoUse(
        where,
        ann_file,
        classes,
        masks=loads_masks or scores_masks,
        filter_empty=bool(filters.get("filter_empty_gt")),
        min_size=filters.get("min_size", 0),
        evaluated=evaluated,
        scores_masks=scores_masks,
    )


def _coco(kind: type) -> type:
    """mmdet's CocoDataset among the bases of a data set's class."""
    return next(base for base in kind.__mro__ if base.__name__ == "CocoDataset")


def is_coco_metric(metric: dict, scope: str | None) -> bool:
    """Whether a metric reads the file as mmdet's CocoMetric does."""
    kind = metric.get("type")
    if isinstance(kind, str):
        with METRICS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    for base in getattr(kind, "__mro__", ()):
        if base.__name__ == "CocoMetric":
            return kind.__init__ is base.__init__ and kind.compute_metrics is base.compute_metrics
    return False


def metrics_of(evaluator: Any) -> list[dict]:
    """The configs of an evaluator's metrics."""
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    return [metric for metric in metrics if isinstance(metric, dict)]


def _check_classes(found: Report, use: CocoUse, content: dict) -> None:
    categories = [category["name"] for category in content["categories"]]
    unknown = [name for name in use.classes if name not in categories]
    trailing = list(use.classes[: len(use.classes) - len(unknown)]) == [
        name for name in categories if name in use.classes
    ]
    if unknown and trailing and not use.evaluated and len(unknown) < len(use.classes):
        # the others keep their numbers
        text = (
            f"{use.where}.metainfo.classes: {some(unknown)} (the last of the {len(use.classes)} "
            f"classes) are not among the categories of {use.ann_file!r}: nothing is learned of them"
        )
        kind = "unused-class"
        found.findings.append(
            Finding("warning", kind, use.where, text, len(unknown), tuple(unknown))
        )
        return
    if unknown:
        found.error(
            use.where,
            "absent-class",
            f"{use.where}.metainfo.classes: {len(unknown)} of the {len(use.classes)} classes are "
            f"not among the categories of {use.ann_file!r} ({some(categories)}): {some(unknown)}; "
            "mmdet would silently leave them out",
            unknown,
        )
        return
    order = [name for name in categories if name in use.classes]
    if order != list(use.classes):
        found.error(
            use.where,
            "class-order",
            f"{use.where}.metainfo.classes: {some(use.classes)} are in another order in "
            f"{use.ann_file!r} ({some(order)}), and mmdet labels by the file's order: "
            "put the classes in that order",
        )


def _check_ids(found: Report, use: CocoUse, content: dict) -> None:
    annotations = content.get("annotations", [])
    listed = {category["id"] for category in content["categories"]}
    unlisted = [one for one in annotations if one["category_id"] not in listed]
    if unlisted:
        found.error(
            use.where,
            "unlisted-category",
            f"{use.where}.ann_file: {len(unlisted)} annotations in {use.ann_file!r} have a "
            f"category_id that its categories do not list, e.g. {unlisted[0]['category_id']}; "
            "mmdet would silently leave them out",
            [f"id {one['id']}" for one in unlisted],
        )
    unscorable = [one for one in annotations if not has_scorable_id(one)]
    if use.evaluated and unscorable:
        text = (
            f"{use.where}.ann_file: {use.ann_file!r} has an annotation with id "
            f"{unscorable[0]['id']!r}, which pycocotools cannot score (0 means 'not matched' to "
            "it): tools/train.py and tools/test.py score a copy with other ids; for other tools "
            "number the annotations from 1"
        )
        names = tuple(f"id {one['id']}" for one in unscorable)
        found.findings.append(Finding("note", "id-0", use.where, text, len(names), names))
