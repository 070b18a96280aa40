"""Check of a classification data set: class folders, or a list of images and labels."""

import os

from vig_mm.datasets.files import IMAGES, entries, files, some

from .data_set import DataSet, hint

_IGNORED = -100  # torch's label of no class


def check(data: DataSet) -> None:
    """Check class folders, or a list, against the classes."""
    split = data.entry.get("split") or ""
    prefix = data.entry.get("data_prefix") or split
    folder = data.path(prefix.get("img_path", "") if isinstance(prefix, dict) else prefix)
    if not data.has_folder(".data_prefix", folder, "image folder"):
        return
    if not data.ann_file and split and os.path.isfile(data.path(f"meta/{split}.txt")):
        data.ann_file = f"meta/{split}.txt"
    labelled = data.entry.get("with_label", split != "test")
    extensions = getattr(data.kind, "IMG_EXTENSIONS", None) or data.option("extensions")
    extensions, labels = tuple(sorted(extensions)), []
    if data.ann_file:
        names, labels = _listed(data, folder, labelled)
    elif labelled:
        names, labels = _in_folders(data, folder, extensions)
    else:
        names = files(folder, extensions, any_case=True)
        if not names:
            text = f"{folder!r} has no file that ends in one of {', '.join(extensions)}"
            data.add("no-images", text + hint(folder), key=".data_prefix")
    if names:
        data.list_files(folder, names, labels=labels)


def _in_folders(
    data: DataSet, root: str, extensions: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """The images below class folders, and the class of each."""
    folders = sorted(entry.name for entry in entries(root) if entry.is_dir())
    if not folders:
        text = f"{root!r} has no class folders ({root}/<class>/*.jpg is expected){hint(root)}"
        data.add("no-classes", text)
        return [], []
    names, other, beside = [], [], []
    for name in files(root):
        if os.sep in name:
            (names if name.lower().endswith(extensions) else other).append(name)
        elif name.lower().endswith((*extensions, *IMAGES)):
            beside.append(name)
    labels = [name.partition(os.sep)[0] for name in names]
    if empty := sorted(set(folders).difference(labels)):
        text = f"{len(empty)} of {len(folders)} class folders in {root!r} have no image: "
        # mmpretrain goes on without, unless all are
        severity = "warning" if names else "error"
        data.add("empty-class", f"{text}{some(empty)}{hint(root)}", empty, severity)
    data.not_taken(root, other, f"do not end in one of {', '.join(extensions)}")
    data.not_taken(root, beside, "are in no class folder (move them into one)")
    classes = data.report.classes.setdefault(data.where, tuple(folders)) if names else folders
    if len(classes) != len(folders):
        text = f"{root!r} has {len(folders)} class folders ({some(folders)}), but the data set has "
        text += f"{len(classes)} classes ({some(classes)}): for other data than "
        text += f"{data.kind.__name__}'s own set metainfo.classes, or use type='CustomDataset'"
        data.add("class-count", text)
    return names, labels


def _listed(data: DataSet, folder: str, labelled: bool) -> tuple[list[str], list[str]]:
    """The images and labels in a file of lines `image label`, or of lines `image`."""
    heads = [one for one in data.report.num_classes if "data_preprocessor" not in one[0]]
    key, count = heads[-1] if heads else ("", float("inf"))
    of, last = (f"with {key}={count} ", f"to {count - 1}") if heads else ("", "on")
    wanted = "the path of an image" + (" and the number of its class" if labelled else "")
    names, labels, path = [], [], data.path(data.ann_file)
    for i, line in enumerate(data.lines(), 1):
        # mmpretrain strips lines with labels only
        name, _, label = line.strip().rpartition(" ") if labelled else (line, "", "0")
        fault = ""
        try:
            if not (0 <= int(label) < count or int(label) == _IGNORED):
                fault = f"ends in {label!r}, but {of}each line must end in a class number from 0 "
                fault += last
        except ValueError:
            name = ""
        if not name:
            fault = f"is {line!r}, but each line must be {wanted}"
        if fault:
            data.add("list", f"line {i} of {path!r} {fault}", key=".ann_file")
            return [], []
        names.append(name)
        labels.append(label)
    gone = data.absent(".ann_file", names, path, folder)
    return ([], []) if gone else (names, labels if labelled else [])
