"""Check of a classification data set: class folders, or a list of images and labels."""

import os

from vig_mm.datasets.files import IMAGES, entries, files, some

from .options import Listing, image_loader, option
from .report import Report, hint

_IGNORED = -100  # torch's label of no class


def check(found: Report, where: str, dataset: dict, kind: type, root: str) -> None:
    """Check class folders, or a list, against the classes; `kind`: the data set's class."""
    split = dataset.get("split") or ""
    prefix = dataset.get("data_prefix") or split
    folder = os.path.join(root, prefix.get("img_path", "") if isinstance(prefix, dict) else prefix)
    if not found.has_folder(f"{where}.data_prefix", folder, "image folder"):
        return
    ann_file = dataset.get("ann_file") or ""
    if not ann_file and split and os.path.isfile(os.path.join(root, f"meta/{split}.txt")):
        ann_file = f"meta/{split}.txt"
    labelled = dataset.get("with_label", split != "test")
    extensions = getattr(kind, "IMG_EXTENSIONS", None) or option(dataset, kind, "extensions")
    extensions, labels = tuple(sorted(extensions)), []
    if ann_file:
        path = os.path.join(root, ann_file)
        names, labels = _listed(found, f"{where}.ann_file", path, folder, labelled)
    elif labelled:
        names, labels = _in_folders(found, where, folder, extensions, kind)
    else:
        names = files(folder, extensions, any_case=True)
        if not names:
            text = f"{folder!r} has no file that ends in one of {', '.join(extensions)}"
            found.add(f"{where}.data_prefix", "no-images", text + hint(folder))
    if names:
        loader = image_loader(dataset.get("pipeline"))
        found.listings.append(Listing(where, folder, tuple(names), *loader, classes=tuple(labels)))


def _in_folders(
    found: Report, where: str, root: str, extensions: tuple[str, ...], kind: type
) -> tuple[list[str], list[str]]:
    """The images below class folders, and the class of each."""
    folders = sorted(entry.name for entry in entries(root) if entry.is_dir())
    if not folders:
        text = f"{root!r} has no class folders ({root}/<class>/*.jpg is expected){hint(root)}"
        found.add(where, "no-classes", text)
        return [], []
    names, other, beside = [], [], []
    for name in files(root):
        if os.sep in name:
            (names if name.lower().endswith(extensions) else other).append(name)
        elif name.lower().endswith((*extensions, *IMAGES)):
            beside.append(name)
    labels = [name.partition(os.sep)[0] for name in names]
    if empty := sorted(set(folders).difference(labels)):
        of = f"{len(empty)} of {len(folders)} class folders in {root!r}"
        severity = "warning" if names else "error"  # mmpretrain goes on without, unless all are
        text = f"{of} have no image: {some(empty)}{hint(root)}"
        found.add(where, "empty-class", text, empty, severity)
    found.not_taken(where, root, other, f"do not end in one of {', '.join(extensions)}")
    found.not_taken(where, root, beside, "are in no class folder (move them into one)")
    classes = found.classes.setdefault(where, tuple(folders)) if names else folders
    if len(classes) != len(folders):
        text = (
            f"{root!r} has {len(folders)} class folders ({some(folders)}), but the data set has "
            f"{len(classes)} classes ({some(classes)}): for other data than {kind.__name__}'s own "
            "set metainfo.classes, or use type='CustomDataset'"
        )
        found.add(where, "class-count", text)
    return names, labels


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
        problem = ""
        try:
            if not (0 <= int(label) < count or int(label) == _IGNORED):
                of, last = (f"with {key}={count} ", f"to {count - 1}") if heads else ("", "on")
                problem = f"ends in {label!r}, but {of}each line must end in a class number from 0 "
                problem += last
        except ValueError:
            name = ""
        if not name:
            wanted = "the path of an image" + (" and the number of its class" if labelled else "")
            problem = f"is {line!r}, but each line must be {wanted}"
        if problem:
            found.add(where, "list", f"line {i} of {path!r} {problem}")
            return [], []
        names.append(name)
        labels.append(label)
    gone = found.absent(where, names, path, folder)
    return ([], []) if gone else (names, labels if labelled else [])
