"""Composition of one scene: digits over a photograph, with a label for every pixel.

A scene keeps, for each pixel, the share that every layer has in it. Picture and ground truth come
from the same shares, so they can't disagree: a pixel belongs to the layer with the largest share,
and it is solid where that share is at least `SOLID`.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

SPLITS = ("train", "val")
SOLID = 0.9
MIN_STAMP = 24  # pixels, a digit with its margin
TRIALS = 20  # places tried for a layer before the scene goes without it
EMPTY_EVERY = 20  # of so many COCO and ADE20K images one has no digit


@dataclass(frozen=True)
class Look:
    """What the scenes of a layout look like.

    Attributes:
        stamp: Smallest and largest side of a digit's stamp, as a share of the shorter image side.
        digits: Most digits in a scene.
        visible: Share of its own area that every digit must keep.
        clutter: Most patches of photograph pasted over the digits.
    """

    stamp: tuple[float, float]
    digits: int
    visible: float = 0.7
    clutter: int = 0


@dataclass(frozen=True)
class Source:
    """The real pixels of one split.

    Attributes:
        digits: One array `[n, 8, 8]` of ink (0..1, every sample's darkest point is 1) per class.
        photos: uint8 arrays `[h, w, 3]`.
    """

    digits: list[np.ndarray]
    photos: list[np.ndarray]

    def crop(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """A random piece of a photograph, float32 `[h, w, 3]`, 0..255, for `size` = (h, w)."""
        photo = self.photos[rng.integers(len(self.photos))]
        zoom = min(photo.shape[0] / size[0], photo.shape[1] / size[1]) * rng.uniform(0.4, 1.0)
        h, w = (max(1, int(side * zoom)) for side in size)
        y, x = rng.integers(photo.shape[0] - h + 1), rng.integers(photo.shape[1] - w + 1)
        piece = Image.fromarray(photo[y : y + h, x : x + w])
        pixels = np.asarray(piece.resize(size[::-1], Image.Resampling.BICUBIC), np.float32)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return np.clip(pixels * np.float32(rng.uniform(0.5, 1.1)), 0, 255)

    def ink(self, rng: np.random.Generator, label: int, size: tuple[int, int]) -> np.ndarray:
        """A handwritten `label`, float32 `[h, w]`, 0..1, with a margin of an eighth around it."""
        samples = self.digits[label]
        sample = np.pad(samples[rng.integers(len(samples))], 1).astype(np.float32)
        scaled = Image.fromarray(sample).resize(size[::-1], Image.Resampling.BICUBIC)
        return np.clip(np.asarray(scaled), 0, 1)


def load_sources() -> dict[str, Source]:
    """The bundled digits and photographs, divided so that the splits have nothing in common.

    Val gets the last fifth of each class's samples and the right-hand 40 % of the photographs.
    """
    bundled = load_digits()
    ink = bundled.images / bundled.images.max(axis=(1, 2), keepdims=True)
    classes = [ink[bundled.target == label] for label in range(10)]
    photos = load_sample_images().images
    cuts = [len(samples) - len(samples) // 5 for samples in classes]
    edges = [photo.shape[1] * 3 // 5 for photo in photos]
    return {
        "train": Source(
            [samples[:cut] for samples, cut in zip(classes, cuts, strict=True)],
            [photo[:, :edge] for photo, edge in zip(photos, edges, strict=True)],
        ),
        "val": Source(
            [samples[cut:] for samples, cut in zip(classes, cuts, strict=True)],
            [photo[:, edge:] for photo, edge in zip(photos, edges, strict=True)],
        ),
    }


class Scene:
    """Layers pasted over a background, the later ones on top.

    Attributes:
        picture: float32 `[h, w, 3]`, 0..255.
        shares: float32 `[1 + layers, h, w]`, the background first; they add up to 1.
        labels: The class of each layer, None for clutter.
    """

    def __init__(self, background: np.ndarray) -> None:
        self.picture = background
        self.shares = np.ones((1, *background.shape[:2]), np.float32)
        self.labels: list[int | None] = []
        self._areas: list[int] = []

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.picture.shape[:2]

    @property
    def owners(self) -> np.ndarray:
        """`[h, w]`: 0 where the background has the largest share, i + 1 where layer i has it."""
        return self.shares.argmax(axis=0)

    @property
    def solid(self) -> np.ndarray:
        """bool `[h, w]`: whether the owner has (nearly) all of the pixel."""
        return self.shares.max(axis=0) >= SOLID

    def try_paste(
        self, alpha: np.ndarray, colour: np.ndarray, label: int | None, visible: float
    ) -> bool:
        """Paste a layer, unless a labelled one (itself included) would show too little.

        Args:
            alpha: float32 `[h, w]`, 0..1, the new layer's opacity.
            colour: float32, broadcastable to `[h, w, 3]`, 0..255.
            label: Class of the layer; None for clutter, which may be covered at will.
            visible: Share of the area that it has when alone which a layer must keep.

        Returns:
            Whether it was pasted; if not, the scene is as it was.
        """
        shares = np.concatenate([self.shares * (1 - alpha), alpha[None]])
        areas = [*self._areas, int((alpha > 0.5).sum())]
        labels = [*self.labels, label]
        seen = np.bincount(shares.argmax(axis=0).ravel(), minlength=len(shares))[1:]
        for left, area, which in zip(seen, areas, labels, strict=True):
            if which is not None and left < max(1, visible * area):
                return False
        self.shares, self._areas, self.labels = shares, areas, labels
        self.picture = self.picture * (1 - alpha[..., None]) + colour * alpha[..., None]
        return True

    def image(self) -> Image.Image:
        """The picture as an 8-bit RGB image."""
        return Image.fromarray(np.rint(np.clip(self.picture, 0, 255)).astype(np.uint8))


def compose(
    rng: np.random.Generator,
    source: Source,
    size: tuple[int, int],
    look: Look,
    label: int | None = None,
    empty: bool = False,
) -> Scene:
    """Make a scene.

    Args:
        rng: All that is random comes from it.
        source: Digits and photographs to take.
        size: (height, width) in pixels, each side at least 32.
        look: The layout's look.
        label: Class of every digit; None draws each one's.
        empty: Leave the digits out.
    """
    scene = Scene(source.crop(rng, size))
    if empty:
        return scene
    for _ in range(rng.integers(1, look.digits + 1)):
        _add_digit(rng, source, scene, look, int(rng.integers(10)) if label is None else label)
    for _ in range(rng.integers(look.clutter + 1)):
        _add_clutter(rng, source, scene, look)
    return scene


def _add_digit(
    rng: np.random.Generator, source: Source, scene: Scene, look: Look, label: int
) -> None:
    side = max(MIN_STAMP, min(scene.size) * rng.uniform(*look.stamp))
    h, w = int(side), int(min(side * rng.uniform(0.85, 1.15), scene.size[1]))
    ink = source.ink(rng, label, (h, w))
    for _ in range(TRIALS):
        window = _place(rng, scene.size, (h, w))
        alpha = np.zeros(scene.size, np.float32)
        alpha[window] = _smooth_step(ink, 0.3, 0.55)
        shade = np.ones(scene.size, np.float32)
        shade[window] = 0.55 + 0.45 * ink
        colour = _tint(rng, scene, alpha > 0.5) * shade[..., None]
        if scene.try_paste(alpha, colour, label, look.visible):
            return


def _add_clutter(rng: np.random.Generator, source: Source, scene: Scene, look: Look) -> None:
    h, w = (max(4, int(min(scene.size) * rng.uniform(0.1, 0.25))) for _ in range(2))
    patch = source.crop(rng, (h, w))
    for _ in range(TRIALS):
        window = _place(rng, scene.size, (h, w))
        alpha = np.zeros(scene.size, np.float32)
        alpha[window] = 1
        colour = np.zeros((*scene.size, 3), np.float32)
        colour[window] = patch
        if scene.try_paste(alpha, colour, None, look.visible):
            return


def _place(
    rng: np.random.Generator, size: tuple[int, int], stamp: tuple[int, int]
) -> tuple[slice, slice]:
    y, x = (int(rng.integers(a - b + 1)) for a, b in zip(size, stamp, strict=True))
    return slice(y, y + stamp[0]), slice(x, x + stamp[1])


def _smooth_step(ink: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((ink - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _tint(rng: np.random.Generator, scene: Scene, where: np.ndarray) -> np.ndarray:
    """The one of a few random saturated colours that stands out most from what lies below."""
    below = [scene.picture[where & (scene.owners == i)] for i in range(len(scene.shares))]
    means = np.stack([pixels.mean(axis=0) for pixels in below if len(pixels)])
    hsv = rng.uniform((0, 0.75, 0.6), (1, 1, 1), (8, 3))
    colours = np.array([colorsys.hsv_to_rgb(*row) for row in hsv], np.float32) * 255
    # The eye tells greens apart best, then blues, then reds.
    distance = np.sqrt(((colours[:, None] - means) ** 2 * (2, 4, 3)).sum(axis=-1)).min(axis=1)
    return colours[distance.argmax()]
