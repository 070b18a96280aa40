"""Check of image files: what keeps one from being loaded whole, and what the loader makes of it.

OpenCV, which mmcv decodes with by default, takes zeros in place of a jpg's end (a download that was
broken off) for grey, and mmcv does not name an empty file.
"""

import hashlib
import io
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vig_mm.datasets.transforms.load_tiff import read_tiff

from .findings import Finding, Table, finding, findings, number, some
from .options import Listing

FAULTS = {
    "missing": ("is not there", "are not there"),
    "empty": ("is an empty file (0 bytes)", "are empty files (0 bytes)"),
    "not-an-image": ("is no image", "are no images"),
    "truncated": ("is cut off: the file ends before the picture does",
                  "are cut off: the file ends before the picture does"),
    "unreadable": ("cannot be read", "cannot be read"),
}  # fmt: skip
"""Kind -> what to say of one file, and of several."""
FIX = "copy or download it again, or take it out of the data set"

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_JPEG_SCAN = 0xDA  # marker of the compressed pixels
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"
_PNG_DEPTH = 24  # position of the bits per sample
_TIFF_DEPTH = 258  # tag of the bits per sample
_OPENCV_PIXELS = 2**30  # it decodes no picture of more
_UNLIMITED = threading.Lock()  # while PIL's limit, which is global, is lifted
_NO_PICTURE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

_TABLE: Table = {
    **{kind: ("error", several, FIX) for kind, (_, several) in FAULTS.items()},
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


@dataclass(frozen=True)
class ImageFacts:
    """What `image_facts` finds out of one file; sizes are (height, width) in pixels."""

    path: str
    digest: str = ""  # hash of its bytes
    fault: str | None = None  # a key of `FAULTS`
    detail: str = ""  # the decoder's words for the fault
    format: str = ""  # PIL's name ("JPEG"), "" where PIL does not know it
    mode: str = ""  # PIL's name of the channels ("RGB", "L", "CMYK")
    bits: int = 8  # of a channel
    size: tuple[int, int] = (0, 0)  # in the file, before any EXIF rotation
    orientation: int = 1  # of EXIF, 1 (upright) to 8
    transparent: bool = False  # whether a pixel is not opaque
    loaded: tuple[int, int] = (0, 0)  # that the data loader gets

    @property
    def sides_swapped(self) -> bool:
        """Whether EXIF says to turn the image by 90 degrees."""
        return self.orientation in (5, 6, 7, 8)


def file_fault(path: str) -> str | None:
    """Why an image file cannot be loaded whole.

    Nothing of a jpg or png is decoded that ends as it should; other formats and ends are.

    Returns:
        "missing", "empty", "truncated", "unreadable" (the system does not let it be read), or None.
        What else may be wrong, the decoder says.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - len(_PNG_END)))
            tail = file.read()
            if not size:
                return "empty"
            if (head.startswith(_JPEG) and tail.endswith(_JPEG_END)) or (
                head.startswith(_PNG) and tail.endswith(_PNG_END)
            ):
                return None
            file.seek(0)
            content = file.read()
    except OSError as error:
        return fault_of(error)
    return "truncated" if _is_truncated(content) else None


def fault_of(error: OSError) -> str:
    """The fault of a file that the system does not open or read."""
    return "missing" if isinstance(error, FileNotFoundError) else "unreadable"


def open_image(file: str | BinaryIO) -> Image.Image:
    """`Image.open` for pictures of any size; OpenCV decodes six times what PIL opens."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        with _UNLIMITED:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(file)
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def _is_truncated(content: bytes) -> bool:
    """Whether an encoded image that does not end with its end lacks it."""
    if content.startswith(_JPEG):
        return not _jpeg_ends(content)
    try:
        with open_image(io.BytesIO(content)) as image:
            if image.width * image.height <= _OPENCV_PIXELS:
                image.load()
    except UnidentifiedImageError:
        return content.startswith(_PNG)  # PIL knows its beginning: the rest of the header is gone
    except Image.DecompressionBombError:  # some formats show the size of a part only now
        return False
    except _NO_PICTURE:
        return True
    return False


def _jpeg_ends(content: bytes) -> bool:
    """Whether the first scan of a jpg is followed by an end.

    There may be bytes behind it (a film, a second picture), and a preview in a segment before, with
    an end of its own. In a scan the two bytes of the end do not occur (ITU-T T.81, B.1.1.5).
    """
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == _JPEG_SCAN:
            return content.find(_JPEG_END, at) >= 0
        is_fill = marker == 0xFF
        at += 1 if is_fill else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return False


def image_facts(path: str, flag: str = "color", backend: str | None = None) -> ImageFacts:
    """Read and decode an image as `LoadImageFromFile` does.

    Args:
        path: The file.
        flag: `color_type` of the loading transform.
        backend: Its `imdecode_backend`, or `tifffile` or `numpy` where one of these reads the file.
    """
    import mmcv

    try:
        with open(path, "rb") as file:
            content = file.read()
        fault = file_fault(path)
    except OSError as error:
        return ImageFacts(path, fault=fault_of(error), detail=str(error))
    facts = _header(content)
    facts["digest"] = hashlib.blake2b(content, digest_size=16).hexdigest()
    if fault is None:
        try:
            if backend == "tifffile":
                image = read_tiff(content)
            elif backend == "numpy" and path.endswith(".npy"):
                image = np.load(io.BytesIO(content), allow_pickle=False)
            else:
                decoder = None if backend == "numpy" else backend
                image = mmcv.imfrombytes(content, flag, backend=decoder)
            if image is None:
                raise ValueError(f"{backend or 'cv2'} cannot decode it")
            facts["loaded"] = image.shape[:2]
            facts.update(_decoded(content))
        except Exception as error:  # each decoder has its own
            fault = "unreadable" if facts.get("format") else "not-an-image"
            facts["detail"] = " ".join(str(error).split())
            if fault == "not-an-image":
                facts["detail"] = f"it begins with {content[:20]!r}"
    return ImageFacts(path, fault=fault, **facts)


def _header(content: bytes) -> dict[str, Any]:
    """The facts for which PIL decodes nothing; {} where it does not know the format."""
    try:
        with open_image(io.BytesIO(content)) as image:
            bits = {"I": 32, "F": 32}.get(image.mode[:1], 8)
            if image.format == "PNG":  # PIL shows 16-bit colour as 8-bit, so the file is asked
                bits = content[_PNG_DEPTH]
            elif image.format == "TIFF":
                bits = max(np.atleast_1d(image.tag_v2.get(_TIFF_DEPTH, 8)))
            return dict(format=image.format, mode=image.mode, size=image.size[::-1], bits=bits)
    except _NO_PICTURE:
        return {}


def _decoded(content: bytes) -> dict[str, Any]:
    """The facts for which PIL may decode: only of what the loader has, whose size is limited."""
    facts: dict[str, Any] = {}
    try:
        with open_image(io.BytesIO(content)) as image:
            # the tags of a png may stand behind its pixels
            facts["orientation"] = image.getexif().get(ExifTags.Base.Orientation, 1)
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
                facts["transparent"] = lowest < 255
    except _NO_PICTURE:
        pass  # OpenCV decodes more than PIL
    return facts


def survey(listing: Listing, images: Sequence[ImageFacts]) -> list[Finding]:
    """What is wrong with the images of one data set, whatever its annotations are."""
    cases = defaultdict(list)
    for name, facts in zip(listing.names, images, strict=True):
        if facts.fault:
            cases[facts.fault].append(name + (f" ({facts.detail})" if facts.detail else ""))
        else:
            for kind in _kinds(listing, facts):
                cases[kind].append(name)
    total = len(listing.names)
    return list(findings(_TABLE, cases, listing.where, listing.folder, total, "image"))


def _kinds(listing: Listing, facts: ImageFacts) -> list[str]:
    ending = os.path.splitext(facts.path)[1].lower()
    expected = Image.registered_extensions().get(ending)
    real = "JPEG" if facts.format == "MPO" else facts.format  # phones put several into a jpg
    kinds = {
        "transparent": facts.transparent and listing.backend != "tifffile",
        "cmyk": facts.mode == "CMYK",
        "deep": facts.bits > 8 and listing.backend != "tifffile",
        "grey": facts.mode in ("1", "L", "LA") or facts.mode.startswith(("I", "F")),
        "palette": facts.mode in ("P", "PA"),
        "other-ending": bool(expected and real) and expected != real,
    }
    if facts.orientation != 1 and listing.turns:
        # where the sides change places, the size shows what the annotations are of
        sides_tell = facts.sides_swapped and facts.size[0] != facts.size[1]
        kinds["turned"] = listing.use is None
        kinds["turned-unclear"] = not (kinds["turned"] or sides_tell)
    return [kind for kind, holds in kinds.items() if holds]


def duplicates(every: Sequence[tuple[Listing, Sequence[ImageFacts]]]) -> Iterator[Finding]:
    """Pictures that are in a data set twice, and pictures of training that are scored on."""
    trained: set[str] = set()
    for listing, images in every:
        where, folder = listing.where, listing.folder
        of: dict[str, list[int]] = defaultdict(list)
        for i, facts in enumerate(images):
            if not facts.fault:
                of[facts.digest].append(i)
        classes = listing.classes if listing.use is None else ()
        same, torn = [], []
        for indices in of.values():
            if len(indices) > 1:
                names = " = ".join(listing.names[i] for i in indices)
                differ = classes and len({classes[i] for i in indices}) > 1
                (torn if differ else same).append(names)
        if torn:
            text = (
                f"{where}: {folder!r} holds {number(len(torn), 'picture')} in several classes, "
                f"e.g. {some(torn, 3)}: the labels contradict each other; keep the right one"
            )
            yield finding("warning", "several-classes", where, text, torn)
        if same:
            text = (
                f"{where}: {folder!r} holds {number(len(same), 'picture')} more than once, e.g. "
                f"{some(same, 3)}: twice the weight in training and scores"
            )
            yield finding("note", "twice", where, text, same)
        if where.startswith("train"):
            trained |= of.keys()
        elif both := [listing.names[of[digest][0]] for digest in of if digest in trained]:
            text = (
                f"{where}: {number(len(both), 'picture')} of {len(listing.names)} in {folder!r} "
                f"are trained on, too, e.g. {some(both, 3)}: scores are too high; take them out of "
                "one of the two"
            )
            yield finding("warning", "also-trained-on", where, text, both)
