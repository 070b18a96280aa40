"""Full check of all data sets of a config."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ..files.images import ImageFacts, image_facts
from ..findings import Finding
from ..listings import CocoListing, Listing, SegListing
from .coco import coco_findings
from .duplicates import duplicate_findings
from .images import image_findings
from .segmentation import label_findings

# `run(stage, function, items)`: the function's value for each item, in order. The function and the
# items can be pickled, so that other processes may do it.
Run = Callable[[str, Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def survey(listings: Sequence[Listing], run: Run) -> list[Finding]:
    """Read every image, label map and annotation.

    Args:
        listings: Of `DataCheck`, which has found what needs no reading.
        run: Maps a function over files.
    """
    found = []
    every: list[tuple[Listing, list[ImageFacts]]] = []
    read: dict[tuple, ImageFacts] = {}  # loaders often share their files
    for listing in listings:
        how = (listing.flag, listing.backend)
        paths = [os.path.join(listing.folder, name) for name in listing.names]
        new = [path for path in paths if (path, *how) not in read]
        function = partial(image_facts, flag=listing.flag, backend=listing.backend)
        for facts in run(f"images of {listing.where}", function, new):
            read[(facts.path, *how)] = facts
        images = [read[(path, *how)] for path in paths]
        every.append((listing, images))
        found += image_findings(listing, images)
        if isinstance(listing, CocoListing):
            found += coco_findings(listing, images, run)
        elif isinstance(listing, SegListing):
            found += label_findings(listing, images, run)
    return found + duplicate_findings(every)
