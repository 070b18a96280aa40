"""Full check of label maps."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from ..files.images import FIX, ImageFacts
from ..files.label_maps import TOO_LARGE, LabelFacts, label_facts, stray_values
from ..findings import Finding, Table, findings, some
from ..listings import SegListing

_TABLE: Table = {
    "label-unreadable": ("error", "cannot be read", FIX),
    "label-colour": (
        "error", "are coloured pictures", "a label map has one channel (grey or palette), whose "
        "values number the classes; convert colours to numbers, and load them with "
        "imdecode_backend='pillow'",
    ),
    "label-lossy": (
        "error", "are jpgs", "compression changes the numbers; write them as png",
    ),
    "label-16-bit": (
        "error", f"hold values of {TOO_LARGE} and more", "mmseg cuts them to 8 bits, and they "
        "count as other classes; renumber them",
    ),
    "label-range": (
        "error", "hold values that no class has", "training stops, on a GPU with a device-side "
        "assert; correct metainfo.classes, reduce_zero_label or the label maps",
    ),
    "label-size": (
        "error", "are of another size than their image", "training stops, or the labels are "
        "shifted; write them in the image's size (one whose EXIF orientation the loader follows "
        "has the turned size)",
    ),
    "label-empty": (
        "warning", "hold nothing but 'no label'", "nothing is learned of their images; take them "
        "out, or see whether the numbers and reduce_zero_label are right",
    ),
    "label-palette": (
        "note", "have a palette", "the numbers count, not the colours; nothing to do",
    ),
}  # fmt: skip


def label_findings(
    listing: SegListing, images: Sequence[ImageFacts], run: Callable
) -> list[Finding]:
    """What is wrong with the label maps of one data set."""
    paths = [os.path.join(listing.label_folder, name) for name in listing.labels]
    function = partial(label_facts, backend=listing.label_backend)
    labels = list(run(f"labels of {listing.where}", function, paths))
    cases = defaultdict(list)
    there: set[int] = set()
    for name, facts, image in zip(listing.labels, labels, images, strict=True):
        there.update(facts.values)
        for kind, detail in _kinds(listing, facts, image):
            cases[kind].append(f"{name}{detail}")
    total, folder = len(listing.labels), listing.label_folder
    found = list(findings(_TABLE, cases, listing.where, folder, total, "label map"))
    return found + _classes(listing, there)


def _kinds(listing: SegListing, facts: LabelFacts, image: ImageFacts) -> list[tuple[str, str]]:
    """(kind, what to add to the name)"""
    if facts.fault:
        return [("label-unreadable", f" ({facts.detail or facts.fault})")]
    kinds = []
    if facts.format == "JPEG":
        kinds.append(("label-lossy", ""))
    if facts.channels != 1:
        return [*kinds, ("label-colour", f" ({facts.mode})")]
    stray = stray_values(facts, len(listing.classes), listing.reduce_zero_label)
    large = [value for value in stray if value >= TOO_LARGE]
    if large:
        kinds.append(("label-16-bit", f" ({some(large)})"))
    elif stray:
        kinds.append(("label-range", f" ({some(stray)})"))
    if not image.fault and facts.size != image.loaded:
        of = f" ({facts.size[1]}x{facts.size[0]}, the image is {image.loaded[1]}x{image.loaded[0]})"
        kinds.append(("label-size", of))
    ignored = {255, 0} if listing.reduce_zero_label else {255}
    if ignored.issuperset(facts.values):
        kinds.append(("label-empty", ""))
    if facts.mode == "P":
        kinds.append(("label-palette", ""))
    return kinds


def _classes(listing: SegListing, there: set[int]) -> list[Finding]:
    """Classes that no pixel has."""
    first = int(listing.reduce_zero_label)
    unused = [name for i, name in enumerate(listing.classes, first) if i not in there]
    if not unused:
        return []
    training = listing.where.startswith("train")
    text = (
        f"{listing.where}: {len(unused)} of the {len(listing.classes)} classes occur in no label "
        f"map of {listing.label_folder!r}: {some(unused)}: "
        + ("nothing is learned of them" if training else "the mean IoU leaves them out")
    )
    severity = "warning" if training else "note"
    return [Finding(severity, "unused-class", listing.where, text, len(unused), tuple(unused))]
