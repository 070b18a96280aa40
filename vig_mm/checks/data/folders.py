"""Quick check of a classification data set: class folders, or a list of images and labels."""

import os

from .findings import IMAGES, entries, files, hint, some
from .options import Listing, image_loader, option
from .report import Report

_IGNORED = -100  # torch's label of no class


def check(found: Report, where: str, dataset: dict, kind: type, root: str) -> None:
    """Check class folders, or a list, against the classes; `kind`: the data set's class."""
    split = dataset.get("split") or ""
    prefix = dataset.get("data_prefix") or split
    folder = os.path.join(root, prefix.get("img_path", "") if isinstance(prefix, dict) else prefix)
    if not os.path.isdir(folder):
        found.missing(where, "data_prefix", folder, "image folder")
        return
    ann_file = dataset.get("ann_file") or ""
    if not ann_file and split and os.path.isfile(os.path.join(root, f"meta/{split}.txt")):
        ann_file = f"meta/{split}.txt"
    labelled = dataset.get("with_label", split != "test")
    extensions = getattr(kind, "IMG_EXTENSIONS", None) or option(dataset, kind, "extensions")
    extensions, labels = tuple(sorted(extensions)), []
    if ann_file:
        names, labels = _listed(found, where, os.path.join(root, ann_file), folder, labelled)
    elif labelled:
        names, labels = _in_folders(found, where, folder, extensions)
        if names:
            _check_classes(found, where, folder, kind)
    else:
        names = sorted(files(folder, extensions, any_case=True))
        if not names:
            text = f"{where}.data_prefix: {folder!r} has no file that ends in one of "
            found.error(where, "no-images", f"{text}{', '.join(extensions)}{hint(folder)}")
    if names:
        loader = image_loader(dataset)
        found.listings.append(Listing(where, folder, tuple(names), *loader, classes=tuple(labels)))


def _in_folders(
    found: Report, where: str, root: str, extensions: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """The images below class folders, and the class of each."""
    classes = _folders(root)
    if not classes:
        text = f"{where}: {root!r} has no class folders ({root}/<class>/*.jpg is expected)"
        found.error(where, "no-classes", f"{text}{hint(root)}")
        return [], []
    names, other, beside = [], [], []
    for name in sorted(files(root, ("",))):
        if os.sep in name:
            (names if name.lower().endswith(extensions) else other).append(name)
        elif name.lower().endswith((*extensions, *IMAGES)):
            beside.append(name)
    labels = [name.partition(os.sep)[0] for name in names]
    filled = set(labels)
    if empty := [name for name in classes if name not in filled]:
        text = (
            f"{where}: {len(empty)} of {len(classes)} class folders in {root!r} have no "
            f"image: {some(empty)}{hint(root)}"
        )
        # mmpretrain goes on without, unless all are empty
        (found.warning if filled else found.error)(where, "empty-class", text, empty)
    found.not_taken(where, root, other, f"do not end in one of {', '.join(extensions)}")
    found.not_taken(where, root, beside, "are in no class folder (move them into one)")
    return names, labels


def _check_classes(found: Report, where: str, root: str, kind: type) -> None:
    names, classes = _folders(root), found.classes.get(where, ())
    if not classes:
        found.classes[where] = tuple(names)
    elif len(classes) != len(names):
        text = (
            f"{where}: {root!r} has {len(names)} class folders ({some(names)}), but the "
            f"data set has {len(classes)} classes ({some(classes)}): for other data than "
            f"{kind.__name__}'s own set metainfo.classes, or use type='CustomDataset'"
        )
        found.error(where, "class-count", text)


def _folders(root: str) -> list[str]:
    return sorted(entry.name for entry in entries(root) if entry.is_dir())


def _listed(
    found: Report, where: str, path: str, folder: str, labelled: bool
) -> tuple[list[str], list[str]]:
    """The images and labels in a file of lines `image label`, or of lines `image`."""
    heads = [one for one in found.num_classes if "data_preprocessor" not in one[0]]
    key, count = heads[-1] if heads else ("", float("inf"))
    names, labels = [], []
    for i, line in enumerate(found.lines_of(where, path), 1):
        # mmpretrain strips lines with labels only
        name, _, label = line.strip().rpartition(" ") if labelled else (line, "", "0")
        try:
            number = int(label)
        except ValueError:
            number = None
        problem = ""
        if not name or number is None:
            wanted = "the path of an image" + (" and the number of its class" if labelled else "")
            problem = f"is {line!r}, but each line must be {wanted}"
        elif not (0 <= number < count or number == _IGNORED):
            last = f"to {count - 1}" if heads else "on"
            of = f"with {key}={count} " if heads else ""
            problem = (
                f"ends in {label!r}, but {of}each line must end in a class number from 0 {last}"
            )
        if problem:
            found.error(where, "list", f"{where}.ann_file: line {i} of {path!r} {problem}")
            return [], []
        names.append(name)
        labels.append(label)
    if found.absent(where, "ann_file", names, path, folder):
        return [], []
    return names, labels if labelled else []
