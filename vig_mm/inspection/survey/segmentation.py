"""Full check of label maps."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ..files.images import FIX, ImageFacts
from ..files.label_maps import TOO_LARGE, LabelFacts, label_facts, stray_values
from ..findings import Finding, Table, findings, some
from ..label_causes import cause, two_values
from ..labels import Value
from ..listings import SegListing

_TABLE: Table = {
    "label-unreadable": ("error", "cannot be read", FIX),
    "label-colour": (
        "error", "are coloured pictures", "a label map has one channel (grey or palette), whose "
        "values number the classes; convert colours to numbers, or map them by vig_mm.MapLabels, "
        "and load them with imdecode_backend='pillow'",
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
    "label-undecided": (
        "warning", "hold values that no class has", "nothing to do if a transform of yours maps "
        "them; else give heads, data sets and evaluators the same ignore_index",
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
_STRAY = ("label-colour", "label-range", "label-undecided")


def label_findings(
    listing: SegListing, images: Sequence[ImageFacts], run: Callable
) -> list[Finding]:
    """What is wrong with the label maps of one data set."""
    paths = [os.path.join(listing.label_folder, name) for name in listing.labels]
    function = partial(label_facts, backend=listing.label_backend)
    labels = list(run(f"labels of {listing.where}", function, paths))
    cases = defaultdict(list)
    there: set[Value] = set()
    for name, facts, image in zip(listing.labels, labels, images, strict=True):
        there.update(facts.values)
        for kind, detail in _kinds(listing, facts, image):
            cases[kind].append(f"{name}{detail}")
    total, folder = len(listing.labels), listing.label_folder
    found = list(findings(_TABLE, cases, listing.where, folder, total, "label map"))
    if any(not listing.use.is_known(value) for value in there):
        why = cause(there, listing.use)
        found = [
            replace(one, text=f"{one.text}; {why}") if one.kind in _STRAY else one for one in found
        ]
    elif trap := two_values(there, listing.use, listing.classes):
        text = f"{listing.where}: label maps in {folder!r}: {trap}"
        found.append(Finding("warning", "two-values", listing.where, text))
    return found + _classes(listing, there)


def _kinds(listing: SegListing, facts: LabelFacts, image: ImageFacts) -> list[tuple[str, str]]:
    """(kind, what to add to the name)"""
    if facts.fault:
        return [("label-unreadable", f" ({facts.detail or facts.fault})")]
    kinds = []
    if facts.format == "JPEG":
        kinds.append(("label-lossy", ""))
    stray = stray_values(facts, listing.use)
    if facts.channels != 1 and (stray or not facts.values):
        return [*kinds, ("label-colour", f" ({facts.mode})")]
    large = [value for value in facts.values if isinstance(value, int) and value >= TOO_LARGE]
    certain = not listing.use.undecided and not all(map(listing.use.is_tolerated, stray))
    if large:
        kinds.append(("label-16-bit", f" ({some(large)})"))
    elif stray:
        kinds.append(("label-range" if certain else "label-undecided", f" ({some(stray)})"))
    if not image.fault and facts.size != image.loaded:
        of = f" ({facts.size[1]}x{facts.size[0]}, the image is {image.loaded[1]}x{image.loaded[0]})"
        kinds.append(("label-size", of))
    if not any(map(listing.use.is_class, facts.values)) and not stray:
        kinds.append(("label-empty", ""))
    if facts.mode == "P":
        kinds.append(("label-palette", ""))
    return kinds


def _classes(listing: SegListing, there: set[Value]) -> list[Finding]:
    """Classes that no pixel has."""
    # of a part of a data set's own classes the label maps have all
    use = replace(listing.use, label_map=None, num_classes=len(listing.classes))
    numbers = {use.loaded(value) for value in there}
    unused = [name for i, name in enumerate(listing.classes) if i not in numbers]
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
