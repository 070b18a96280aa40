"""Faults in one image file, and its format, size and orientation.

OpenCV, which mmcv decodes with by default, takes zeros in place of a jpg's end (a download that was
broken off) for grey, and mmcv does not name an empty file.
"""

import hashlib
import io
import threading
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vig_mm.datasets.transforms.load_tiff import read_tiff

FAULTS = {
    "missing": "is not there",
    "empty": "is an empty file (0 bytes)",
    "not-an-image": "is no image",
    "truncated": "is cut off: the file ends before the picture does",
    "unreadable": "cannot be read",
}
# Faults of a file and not of its place; `FIX` mends them.
FIX = "copy or download it again, or take it out of the data set"

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_JPEG_SCAN = 0xDA  # marker of the compressed pixels
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"
_PNG_DEPTH = 24  # position of the bits per sample
_TIFF_DEPTH = 258  # tag of the bits per sample
_TURNED_BY_90 = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_OPENCV_PIXELS = 2**30  # it decodes no picture of more
_UNLIMITED = threading.Lock()  # while PIL's limit, which is global, is lifted


@dataclass(frozen=True)
class ImageFacts:
    """What `image_facts` finds out.

    Attributes:
        path: The file.
        digest: Hash of its bytes.
        fault: A key of `FAULTS`, or None.
        detail: The decoder's words for the fault.
        format: PIL's name of the format ("JPEG"), "" where PIL does not know it.
        mode: PIL's name of the channels ("RGB", "L", "CMYK").
        bits: Bits of a channel.
        size: (height, width) in the file, in pixels, before any EXIF rotation.
        orientation: EXIF orientation, 1 (upright) to 8.
        transparent: Whether a pixel is not opaque.
        loaded: (height, width) that the data loader gets, in pixels.
    """

    path: str
    digest: str = ""
    fault: str | None = None
    detail: str = ""
    format: str = ""
    mode: str = ""
    bits: int = 8
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    transparent: bool = False
    loaded: tuple[int, int] = (0, 0)

    @property
    def sides_swapped(self) -> bool:
        """Whether EXIF says to turn the image by 90 degrees."""
        return self.orientation in _TURNED_BY_90


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
            is_whole = (head.startswith(_JPEG) and tail.endswith(_JPEG_END)) or (
                head.startswith(_PNG) and tail.endswith(_PNG_END)
            )
            if is_whole:
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
    except (OSError, SyntaxError, ValueError, EOFError):
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


def _header(content: bytes) -> dict:
    """The facts for which PIL decodes nothing; {} where it does not know the format."""
    try:
        with open_image(io.BytesIO(content)) as image:
            facts = dict(format=image.format, mode=image.mode, size=image.size[::-1])
            facts["bits"] = _bits(image, content)
    except (OSError, SyntaxError, ValueError, EOFError):
        return {}
    return facts


def _decoded(content: bytes) -> dict:
    """The facts for which PIL may decode: only of what the loader has, whose size is limited."""
    facts = {}
    try:
        with open_image(io.BytesIO(content)) as image:
            # the tags of a png may stand behind its pixels
            facts["orientation"] = image.getexif().get(ExifTags.Base.Orientation, 1)
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
                facts["transparent"] = lowest < 255
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        pass  # OpenCV decodes more than PIL
    return facts


def _bits(image: Image.Image, content: bytes) -> int:
    # PIL shows 16-bit colour as 8-bit, so the file is asked.
    if image.format == "PNG":
        return content[_PNG_DEPTH]
    if image.format == "TIFF":
        return max(np.atleast_1d(image.tag_v2.get(_TIFF_DEPTH, 8)))
    return {"I": 32, "F": 32}.get(image.mode[:1], 8)
