"""Duplicate images within a data set, and between training and validation."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ..files.images import ImageFacts
from ..findings import Finding, number, some
from ..listings import FolderListing, Listing


def duplicate_findings(every: Sequence[tuple[Listing, Sequence[ImageFacts]]]) -> list[Finding]:
    """Pictures that are in a data set twice, and pictures of training that are scored on."""
    found: list[Finding] = []
    trained: dict[str, str] = {}
    for listing, images in every:
        of: dict[str, list[int]] = defaultdict(list)
        for i, facts in enumerate(images):
            if not facts.fault:
                of[facts.digest].append(i)
        found += _within(listing, of)
        if listing.where.startswith("train"):
            trained |= {digest: listing.names[same[0]] for digest, same in of.items()}
        else:
            found += _leaked(listing, of, trained)
    return found


def _within(listing: Listing, of: dict[str, list[int]]) -> Iterator[Finding]:
    classes = listing.classes if isinstance(listing, FolderListing) else ()
    same, torn = [], []
    for indices in of.values():
        if len(indices) > 1:
            names = " = ".join(listing.names[i] for i in indices)
            differ = classes and len({classes[i] for i in indices}) > 1
            (torn if differ else same).append(names)
    if torn:
        text = (
            f"{listing.where}: {listing.folder!r} holds {number(len(torn), 'picture')} in several "
            f"classes, e.g. {some(torn, 3)}: the labels contradict each other; keep the right one"
        )
        yield Finding("warning", "several-classes", listing.where, text, len(torn), tuple(torn))
    if same:
        text = (
            f"{listing.where}: {listing.folder!r} holds {number(len(same), 'picture')} more than "
            f"once, e.g. {some(same, 3)}: twice the weight in training and scores"
        )
        yield Finding("note", "twice", listing.where, text, len(same), tuple(same))


def _leaked(
    listing: Listing, of: dict[str, list[int]], trained: dict[str, str]
) -> Iterator[Finding]:
    both = [listing.names[same[0]] for digest, same in of.items() if digest in trained]
    if both:
        text = (
            f"{listing.where}: {number(len(both), 'picture')} of {len(listing.names)} in "
            f"{listing.folder!r} are trained on, too, e.g. {some(both, 3)}: scores are too high; "
            "take them out of one of the two"
        )
        yield Finding("warning", "also-trained-on", listing.where, text, len(both), tuple(both))
