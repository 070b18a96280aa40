"""The files of a data set, as its config names them, and what it asks of them."""

from dataclasses import dataclass

from .labels import LabelUse


@dataclass(frozen=True)
class CocoUse:
    """How a data set uses an annotation file.

    Attributes:
        where: Key of the data set in its config.
        ann_file: The file.
        classes: Names of its classes.
        masks: Whether its masks are loaded or scored.
        filter_empty: `filter_empty_gt` of a data set that filters.
        min_size: Shortest side of an image, in pixels; 0 for all.
        evaluated: Whether it is scored on.
        scores_masks: Whether the metric reads its masks.
    """

    where: str
    ann_file: str
    classes: tuple[str, ...]
    masks: bool
    filter_empty: bool = False
    min_size: int = 0
    evaluated: bool = False
    scores_masks: bool = False


@dataclass(frozen=True)
class Listing:
    """What every data set has.

    Attributes:
        where: Key of the data set in its config.
        folder: Of the images.
        names: Files of the images, relative to it.
        flag: `color_type` of `LoadImageFromFile`.
        backend: Its `imdecode_backend`.
    """

    where: str
    folder: str
    names: tuple[str, ...]
    flag: str = "color"
    backend: str | None = "cv2"


@dataclass(frozen=True)
class CocoListing(Listing):
    """A COCO file and its images.

    Attributes:
        content: The annotation file.
        use: What is asked of it.
    """

    content: dict | None = None
    use: CocoUse | None = None


@dataclass(frozen=True)
class SegListing(Listing):
    """Images and label maps.

    Attributes:
        label_folder: Of the label maps.
        labels: The file of each image's label map, relative to it.
        label_backend: `imdecode_backend` of `LoadAnnotations`.
        classes: What the numbers in the label maps stand for, in their order.
        use: What becomes of these numbers.
    """

    label_folder: str = ""
    labels: tuple[str, ...] = ()
    label_backend: str = "pillow"
    classes: tuple[str, ...] = ()
    use: LabelUse | None = None


@dataclass(frozen=True)
class FolderListing(Listing):
    """Images with a class each.

    Attributes:
        classes: The class of each image: its folder, or a number from a list; () without.
    """

    classes: tuple[str, ...] = ()
