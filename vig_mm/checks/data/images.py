"""Check of image files: what keeps one from being loaded whole, and what the loader makes of it.

OpenCV, which mmcv decodes with by default, takes zeros in place of a jpg's end (a download that was
broken off) for grey, and mmcv does not name an empty file.
"""

import hashlib
import io
import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vig_mm.datasets.transforms.load_tiff import read_tiff
from vig_mm.datasets.transforms.map_labels import Value, pack, unpack

from .data_set import DataSet, rules, turns

FIX = "copy or download it again, or take it out of the data set"
_ENDS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"))
(_JPEG, _JPEG_END), (_PNG, _PNG_END) = _ENDS
_JPEG_SCAN = 0xDA  # marker of the compressed pixels
_PNG_DEPTH = 24  # position of the bits per sample
_TIFF_DEPTH = 258  # tag of the bits per sample
_OPENCV_PIXELS = 2**30  # it decodes no picture of more
_UNLIMITED = threading.Lock()  # while PIL's limit, which is global, is lifted
_NO_PICTURE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

_RULES = rules(f"""
error image missing | are not there | {FIX}
error image empty | are empty (0 bytes) | {FIX}
error image not-an-image | are of no image format | {FIX}
error image truncated | are cut off: the file ends before the picture does | {FIX}
error image unreadable | cannot be read | {FIX}
warning image turned-unclear | are turned by the loader, as EXIF says, and keep their size | see
    that the annotations are of the turned pictures (tools/browse_dataset.py), or save the pictures
    upright and without the EXIF tag
warning image transparent | have transparent pixels | the loader drops the transparency, and the
    colours below appear; paste the pictures on a background
warning image cmyk | are CMYK | the loader makes RGB of them without their colour profile, so that
    the colours are rough; convert them
warning image deep | have more than 8 bits a channel | the loader makes 8 of them, and pictures of
    10 or 12 bits come out nearly black or white; scale them to 8 bits
note image turned | are turned by the loader, as their EXIF orientation says | nothing to do
note image grey | are grey | the loader makes three equal channels; nothing to do
note image palette | have a palette | the loader makes RGB of them; nothing to do
note image other-ending | are of another format than they end in | the loader goes by what is in
    them; nothing to do
warning image several-classes | are there again, in another class | the labels contradict each
    other; keep the right one
note image twice | are there more than once | twice the weight in training and scores
warning image also-trained-on | are trained on, too | scores are too high; take them out of one of
    the two
""")
FAULTS = {kind: words[2].replace("are", "is", 1) for kind, words in [*_RULES.items()][:5]}
"""Fault of a file -> what to say of it."""


@dataclass(frozen=True)
class ImageFacts:
    """What `image_facts` finds out of one file; sizes are (height, width) in pixels."""

    path: str
    fault: str | None = None  # a key of `FAULTS`
    detail: str = ""  # the decoder's words for the fault
    digest: str = ""  # hash of its bytes
    format: str = ""  # PIL's name ("JPEG"), "" where PIL does not know it
    mode: str = ""  # PIL's name of the channels ("RGB", "L", "CMYK", "P" with a palette)
    bits: int = 8  # of a channel
    size: tuple[int, int] = (0, 0)  # in the file, before any EXIF rotation
    orientation: int = 1  # of EXIF, 1 (upright) to 8
    transparent: bool = False  # whether a pixel is not opaque
    loaded: tuple[int, int] = (0, 0)  # that the data loader gets
    channels: int = 1  # that the data loader gets of a label map
    values: tuple[Value, ...] = ()  # all of a label map, ascending; (r, g, b) where it has channels

    @property
    def sides_swapped(self) -> bool:
        """Whether EXIF says to turn the image by 90 degrees."""
        return self.orientation in (5, 6, 7, 8)


def file_fault(path: str) -> str | None:
    """Why an image file cannot be loaded whole: "missing", "empty", "truncated", "unreadable" (the
    system does not let it be read), or None. What else may be wrong, the decoder says.

    Nothing of a jpg or png is decoded that ends as it should; other formats and ends are.
    """
    try:
        with open(path, "rb") as file:
            head, size = file.read(8), file.seek(0, io.SEEK_END)
            file.seek(max(0, size - len(_PNG_END)))
            tail = file.read()
            if any(head.startswith(start) and tail.endswith(end) for start, end in _ENDS):
                return None
            file.seek(0)
            content = file.read()
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else "unreadable"
    return ("truncated" if _is_truncated(content) else None) if content else "empty"


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
    """Whether the first scan of a jpg is followed by an end; there may be bytes behind it (a film).

    A preview in a segment before has an end of its own. In a scan the two bytes of the end do not
    occur (ITU-T T.81, B.1.1.5).
    """
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == _JPEG_SCAN:
            return content.find(_JPEG_END, at) >= 0
        is_fill = marker == 0xFF
        at += 1 if is_fill else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return False


def image_facts(
    path: str, flag: str = "color", backend: str | None = None, labels: bool = False
) -> ImageFacts:
    """Read and decode an image as `LoadImageFromFile` does, or a label map as mmseg does.

    `flag` and `backend`: `color_type` and `imdecode_backend` of the loading transform; `tifffile`
    or `numpy` where one of these reads the file.
    """
    import mmcv

    fault = file_fault(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return ImageFacts(path, fault, str(error))
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    facts = dict(_header(content), digest=digest)
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
            facts |= dict(loaded=image.shape[:2], **_values(image) if labels else _decoded(content))
        except Exception as error:  # each decoder has its own
            fault, facts["detail"] = "unreadable", " ".join(str(error).split())
            if not facts.get("format"):
                fault, facts["detail"] = "not-an-image", f"it begins with {content[:20]!r}"
    return ImageFacts(path, fault, **facts)


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
    with suppress(*_NO_PICTURE), open_image(io.BytesIO(content)) as image:
        # the tags of a png may stand behind its pixels
        facts["orientation"] = image.getexif().get(ExifTags.Base.Orientation, 1)
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
            facts["transparent"] = lowest < 255
    return facts  # fewer of what OpenCV decodes and PIL does not


def _values(labels: np.ndarray) -> dict[str, Any]:
    if labels.ndim == 2 or labels.shape[2] == 1:
        return dict(values=tuple(np.unique(labels).tolist()))
    colours = unpack(np.unique(pack(labels))) if labels.shape[2] in (3, 4) else ()
    return dict(channels=labels.shape[2], values=tuple(colours))


def survey(data: DataSet, images: Sequence[ImageFacts]) -> None:
    """What is wrong with the images of one data set, whatever its annotations are."""
    cases = defaultdict(list)
    for name, facts in zip(data.names, images, strict=True):
        for kind in [facts.fault] if facts.fault else _kinds(data, facts):
            cases[kind].append(name + (f" ({facts.detail})" if facts.detail else ""))
    data.judge(_RULES, cases, data.folder, image=len(images))


def _kinds(data: DataSet, facts: ImageFacts) -> list[str]:
    ending = os.path.splitext(facts.path)[1].lower()
    expected = Image.registered_extensions().get(ending)
    real = "JPEG" if facts.format == "MPO" else facts.format  # phones put several into a jpg
    turned = facts.orientation != 1 and turns(data.flag, data.backend)
    # where the sides change places, the size shows what the annotations are of
    sides_tell = facts.sides_swapped and facts.size[0] != facts.size[1]
    kinds = {
        "turned": turned and data.use is None,
        "turned-unclear": turned and data.use is not None and not sides_tell,
        "transparent": facts.transparent and data.backend != "tifffile",
        "cmyk": facts.mode == "CMYK",
        "deep": facts.bits > 8 and data.backend != "tifffile",
        "grey": facts.mode in ("1", "L", "LA") or facts.mode.startswith(("I", "F")),
        "palette": facts.mode in ("P", "PA"),
        "other-ending": bool(expected and real) and expected != real,
    }
    return [kind for kind, holds in kinds.items() if holds]


def duplicates(every: Sequence[tuple[DataSet, Sequence[ImageFacts]]]) -> None:
    """Pictures that are in a data set twice, and pictures of training that are scored on."""
    trained: set[str] = set()
    for data, images in every:
        of: dict[str, list[int]] = defaultdict(list)
        for i, facts in enumerate(images):
            if not facts.fault:
                of[facts.digest].append(i)
        classes = data.labels if data.use is None else ()
        cases = defaultdict(list)
        for indices in of.values():
            if len(indices) > 1:
                differ = classes and len({classes[i] for i in indices}) > 1
                names = " = ".join(data.names[i] for i in indices)
                cases["several-classes" if differ else "twice"].append(names)
        if data.split == "train":
            trained |= of.keys()
        else:
            cases["also-trained-on"] = [data.names[of[one][0]] for one in of if one in trained]
        data.judge(_RULES, cases, data.folder, image=len(images))
