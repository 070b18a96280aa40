"""Drawing primitives: boxes and masks, label maps with a legend, class scores.

Images are RGB arrays ``[h, w, 3]`` (uint8); what is drawn are Pillow images. Colours are RGB, 0 to
255. Nothing of OpenMMLab is needed.
"""

import colorsys
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]

# DejaVu: Latin, Greek, Cyrillic, Arabic, ...; Pillow's own has nothing but ASCII
_FONT = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))

MIN_SIDE, MAX_SIDE = 320, 1600  # pixels: no label fits on less, no screen shows more
TOP = 5
_MASK_OPACITY, _LABEL_MAP_OPACITY = 0.45, 0.6
_PANEL_WIDTH = (9, 16)  # of a legend or a list of scores, in heights of its text
_RIGHT, _WRONG, _NEUTRAL = (0, 130, 60), (200, 30, 30), (70, 110, 180)


def fitted(image: np.ndarray) -> Image.Image:
    """Scale a picture so that labels can be read: short side at least 320, long at most 1600."""
    height, width = image.shape[:2]
    factor = min(max(1.0, MIN_SIDE / min(height, width)), MAX_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = Image.fromarray(np.ascontiguousarray(image))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def as_picture(image: Tensor) -> np.ndarray:
    """A network's input ``[C, h, w]`` -> ``[h, w, 3]`` (uint8), its first channels as they are."""
    image = image[[min(i, len(image) - 1) for i in range(3)]]
    return image.float().round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture, with its folder, so that text stays sharp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=95, subsampling=0)


@cache
def _letters() -> frozenset[int]:
    return frozenset(FT2Font(_FONT).get_charmap())


def is_legible(text: str) -> bool:
    """Whether the font has all letters of a text."""
    return all(ord(letter) in _letters() for letter in text if not letter.isspace())


def distinct_colours(count: int) -> list[Colour]:
    """Bright colours, one a class, those of neighbouring classes far apart."""
    hue = (5**0.5 - 1) / 2
    shades = [colorsys.hsv_to_rgb(i * hue % 1, (0.85, 0.6)[i // 8 % 2], 1.0) for i in range(count)]
    return [tuple(round(255 * x) for x in rgb) for rgb in shades]


def draw_instances(
    picture: Image.Image,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[Colour],
    masks: np.ndarray | None = None,
) -> Image.Image:
    """Draw objects, the larger first, so that small ones stay visible; over them their labels.

    Args:
        boxes: ``[n, 4]``: x1, y1, x2, y2 in pixels of the picture.
        texts, colours: of each object; where labels meet, the first covers the others.
        masks: ``[n, h, w]`` (bool) in the picture's size, or None.
    """
    font = _font(_text_size(picture.size))
    line = max(2, round(font.size / 8))
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
    canvas = np.array(picture)
    for i in order if masks is not None else ():
        blend = (1 - _MASK_OPACITY) * canvas[masks[i]] + _MASK_OPACITY * np.array(colours[i])
        canvas[masks[i]] = blend.astype(np.uint8)
        edges, _ = cv2.findContours(
            masks[i].astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(canvas, edges, -1, colours[i], max(1, line // 2))
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for i in order:
        x1, y1, x2, y2 = boxes[i]
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colours[i], width=line)
    # on the class's colour, above the box or, where the picture ends, in it
    for (x1, y1, *_), text, colour in reversed([*zip(boxes, texts, colours, strict=True)]):
        width, height = draw.textlength(text, font) + 6, font.size * 1.35
        left = min(max(0, x1), max(0, picture.width - width))
        top = y1 - height if y1 >= height else min(max(0, y1), picture.height - height)
        draw.rectangle((left, top, left + width, top + height), fill=colour)
        ink = "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else "white"
        draw.text((left + 3, top + height / 2), text, ink, font, anchor="lm")
    return picture


def draw_label_map(
    picture: Image.Image, labels: np.ndarray, palette: Sequence[Colour]
) -> Image.Image:
    """Give every pixel the colour of its class, and leave the picture's brightness in it.

    ``labels``: ``[h, w]`` in the picture's size; what is not in the palette (255) stays as it is.
    """
    canvas, known = np.array(picture), labels < len(palette)
    colours = np.asarray(palette)[labels[known]]
    grey = np.asarray(picture.convert("L"))[known][:, None]
    blend = (1 - _LABEL_MAP_OPACITY) * grey + _LABEL_MAP_OPACITY * colours
    canvas[known] = blend.astype(np.uint8)
    return Image.fromarray(canvas)


def legend(
    height: int, present: Sequence[int], classes: Sequence[str], palette: Sequence[Colour]
) -> Image.Image:
    """A panel that names the colours of the classes ``present``, as far as there is room.

    Its size depends on nothing but ``height`` (of the picture beside it) and ``classes``.
    """
    panel, draw, font = _panel(height, classes, besides=4)
    row = round(font.size * 1.6)
    room = max(1, (height - font.size) // row)
    shown = present if len(present) <= room else present[: room - 1]
    for i, label in enumerate(shown):
        y = font.size // 2 + i * row
        draw.rectangle((font.size, y + 2, font.size * 2.5, y + row - 4), fill=tuple(palette[label]))
        name = _shortened(classes[label], font, panel.width - font.size * 3.5)
        draw.text((font.size * 3, y + row / 2 - 1), name, "black", font, anchor="lm")
    if more := len(present) - len(shown):
        y = font.size // 2 + len(shown) * row + row / 2 - 1
        draw.text((font.size, y), f"and {more} more", "black", font, anchor="lm")
    return panel


def score_panel(
    height: int,
    scores: np.ndarray,
    classes: Sequence[str],
    truth: Collection[int] | None = None,
) -> Image.Image:
    """A panel with the five highest class scores as bars, and the true classes if they are known.

    ``scores``: ``[classes]``, 0 to 1; bars of true classes are green, the highest, if another, red.
    """
    panel, draw, font = _panel(height, classes, besides=7)
    em, left = font.size, font.size
    full, y = panel.width - 2 * left, em * 1.2
    best = np.argsort(-scores, kind="stable")[:TOP]
    for i, label in enumerate(best):
        score = f"{100 * scores[label]:.1f} %"
        name = _shortened(classes[label], font, full - draw.textlength(score, font) - em)
        draw.text((left, y), name, "black", font, anchor="lm")
        draw.text((left + full, y), score, "black", font, anchor="rm")
        is_wrong = truth is not None and i == 0
        colour = _RIGHT if label in (truth or ()) else _WRONG if is_wrong else _NEUTRAL
        for end, fill in ((full, (225, 225, 225)), (max(1, full * float(scores[label])), colour)):
            draw.rectangle((left, y + em * 0.8, left + end, y + em * 1.3), fill=fill)
        y += round(em * 2.6)
    if truth is not None:
        lines = [("ground truth:", "black")] + ([] if truth else [("no label", "black")])
        lines += [(classes[x], _RIGHT if x in best[: len(truth)] else _WRONG) for x in truth]
        for i, (line, colour) in enumerate(lines):
            where = (left, y + i * em * 1.4)
            draw.text(where, _shortened(line, font, full), colour, font, anchor="lm")
    return panel


def beside(pictures: Sequence[Image.Image], captions: Sequence[str] = ()) -> Image.Image:
    """Put pictures of one height beside each other, and captions over the first of them."""
    font = _font(_text_size(pictures[0].size))
    gap = font.size // 2 if len(pictures) > 1 else 0
    header = round(font.size * 1.7) if captions else 0
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    joined = Image.new("RGB", (width, header + pictures[0].height), "white")
    draw, left = ImageDraw.Draw(joined), 0
    for picture, caption in zip(pictures, [*captions, *[""] * len(pictures)], strict=False):
        joined.paste(picture, (left, header))
        centre = (left + picture.width / 2, header / 2)
        draw.text(centre, _shortened(caption, font, picture.width), "black", font, anchor="mm")
        left += picture.width + gap
    return joined


def _text_size(size: tuple[int, int]) -> int:
    return round(np.clip(min(size) / 24, 14, 26))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONT, size)


def _panel(
    height: int, classes: Sequence[str], besides: int
) -> tuple[Image.Image, ImageDraw.ImageDraw, ImageFont.FreeTypeFont]:
    """An empty panel for the longest class name and ``besides`` heights of text, within limits."""
    font = _font(_text_size((height, height)))
    longest = max(font.getlength(name) for name in classes) + besides * font.size
    width = round(np.clip(longest, *(font.size * limit for limit in _PANEL_WIDTH)))
    panel = Image.new("RGB", (width, height), "white")
    return panel, ImageDraw.Draw(panel), font


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of it as fits into ``width`` pixels and three dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip(" ,") + "..."
