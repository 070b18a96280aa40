"""Full check of image files."""

import os
from collections import defaultdict
from collections.abc import Sequence

from PIL import Image

from ..files.images import FAULTS, FIX, ImageFacts
from ..findings import Finding, Table, findings
from ..listings import FolderListing, Listing

_PLURAL = {
    "missing": "are not there",
    "empty": "are empty files (0 bytes)",
    "not-an-image": "are no images",
    "truncated": "are cut off: the file ends before the picture does",
    "unreadable": "cannot be read",
}
assert _PLURAL.keys() == FAULTS.keys()
_TABLE: Table = {
    **{kind: ("error", what, FIX) for kind, what in _PLURAL.items()},
    "turned-unclear": (
        "warning", "are turned by the loader, as their EXIF orientation says, and keep their size",
        "see that the annotations are of the turned pictures (tools/browse_dataset.py), or save "
        "the pictures upright and without the EXIF tag",
    ),
    "transparent": (
        "warning", "have transparent pixels", "the loader drops the transparency, and the colours "
        "below appear; paste the pictures on a background",
    ),
    "cmyk": (
        "warning", "are CMYK", "the loader makes RGB of them without their colour profile, so "
        "that the colours are rough; convert them",
    ),
    "deep": (
        "warning", "have more than 8 bits a channel", "the loader makes 8 of them, and pictures "
        "of 10 or 12 bits come out nearly black or white; scale them to 8 bits",
    ),
    "turned": (
        "note", "are turned by the loader, as their EXIF orientation says", "nothing to do",
    ),
    "grey": ("note", "are grey", "the loader makes three equal channels; nothing to do"),
    "palette": ("note", "have a palette", "the loader makes RGB of them; nothing to do"),
    "other-ending": (
        "note", "are of another format than they end in", "the loader goes by what is in them; "
        "nothing to do",
    ),
}  # fmt: skip


def image_findings(listing: Listing, images: Sequence[ImageFacts]) -> list[Finding]:
    """What is wrong with the images of one data set, whatever its annotations are."""
    cases = defaultdict(list)
    for name, facts in zip(listing.names, images, strict=True):
        if facts.fault:
            detail = f" ({facts.detail})" if facts.detail else ""
            cases[facts.fault].append(name + detail)
            continue
        for kind in _kinds(listing, facts):
            cases[kind].append(name)
    total = len(listing.names)
    return list(findings(_TABLE, cases, listing.where, listing.folder, total, "image"))


def turns(listing: Listing) -> bool:
    """Whether mmcv follows the EXIF orientation."""
    return listing.flag in ("color", "grayscale") and listing.backend in (None, "cv2", "pillow")


def _kinds(listing: Listing, facts: ImageFacts) -> list[str]:
    kinds = {
        "transparent": facts.transparent and listing.backend != "tifffile",
        "cmyk": facts.mode == "CMYK",
        "deep": facts.bits > 8 and listing.backend != "tifffile",
        "grey": facts.mode in ("1", "L", "LA") or facts.mode.startswith(("I", "F")),
        "palette": facts.mode in ("P", "PA"),
        "other-ending": _ends_otherwise(facts),
    }
    if facts.orientation != 1 and turns(listing):
        # Where the sides change places, the size shows what the annotations are of.
        sides_tell = facts.sides_swapped and facts.size[0] != facts.size[1]
        kinds["turned"] = isinstance(listing, FolderListing)
        kinds["turned-unclear"] = not (kinds["turned"] or sides_tell)
    return [kind for kind, holds in kinds.items() if holds]


def _ends_otherwise(facts: ImageFacts) -> bool:
    ending = os.path.splitext(facts.path)[1].lower()
    expected = Image.registered_extensions().get(ending)
    # phones put several pictures (MPO) into a jpg
    real = "JPEG" if facts.format == "MPO" else facts.format
    return bool(expected and real) and expected != real
