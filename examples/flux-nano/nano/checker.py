"""Judges a picture against a prompt: background, and colour, shape and place of every object.

Objects are found without knowing what was asked: connected regions that differ from the border's colour. They
are then paired with the objects asked for so that most attributes agree: a wrong one costs one mark only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image

from nano.picture import SIDE, coverage
from nano.scene import BACKGROUNDS, OBJECT_COLOURS, PLACES, RGB, SHAPES, Object, Scene, parse

BACKGROUND_TOLERANCE = 0.15  # distance in RGB, each channel 0..1
COLOUR_TOLERANCE = 0.18
PLACE_TOLERANCE = 0.1  # of the side
SHAPE_OVERLAP = 0.75  # least intersection over union with the best template
CONTRAST = 0.12  # pixels nearer than this to the background's colour are background
SMALLEST = 30  # pixels; less is not an object
SPLIT = 60  # pixels of a second colour that make one region two touching objects


@dataclass(frozen=True)
class Found:
    """One object seen in a picture."""

    colour: str | None  # None when no palette colour is near
    shape: str | None  # None when no template fits
    centre: tuple[float, float]  # x, y, of the side

    def place_is(self, place: str | None) -> bool:
        """True near the named place, and when none was named."""
        return place is None or float(np.hypot(*np.subtract(self.centre, PLACES[place]))) <= PLACE_TOLERANCE


@dataclass(frozen=True)
class Verdict:
    """What is right about one object asked for; nothing is when it was not found."""

    colour: bool
    shape: bool
    place: bool

    @property
    def marks(self) -> int:
        """How many of the three are right."""
        return self.colour + self.shape + self.place


@dataclass(frozen=True)
class Report:
    """The judgement of one picture."""

    scene: Scene
    background: bool
    objects: tuple[Verdict, ...]
    found: tuple[Found, ...]

    @property
    def all_right(self) -> bool:
        """Everything asked for is there, and nothing else."""
        exact = len(self.found) == len(self.objects)
        return exact and self.background and all(verdict.marks == 3 for verdict in self.objects)


@dataclass(frozen=True)
class Rates:
    """Shares that are right, 0..1: of objects (colour, shape, place), of pictures (background, all_right)."""

    colour: float
    shape: float
    place: float
    background: float
    all_right: float
    objects: int
    pictures: int

    @classmethod
    def of(cls, reports: Iterable[Report]) -> Rates:
        """The rates over many pictures."""
        reports = list(reports)
        verdicts = [verdict for report in reports for verdict in report.objects]
        return cls(
            colour=_share(verdict.colour for verdict in verdicts),
            shape=_share(verdict.shape for verdict in verdicts),
            place=_share(verdict.place for verdict in verdicts),
            background=_share(report.background for report in reports),
            all_right=_share(report.all_right for report in reports),
            objects=len(verdicts),
            pictures=len(reports),
        )


def check(picture: Image.Image | np.ndarray, asked: Scene | str) -> Report:
    """Judge a picture of any size (uint8 RGB) against a scene or its caption."""
    scene = parse(asked) if isinstance(asked, str) else asked
    pixels = _pixels(picture)
    border = _border_colour(pixels)
    background = scene.background is None or (
        _nearest(border, BACKGROUNDS, BACKGROUND_TOLERANCE) == scene.background
    )
    regions = _regions(pixels, border)
    taken = np.any(regions, axis=0) if regions else np.zeros((SIDE, SIDE), bool)
    found = tuple(_measure(pixels, border, region, taken & ~region) for region in regions)
    return Report(scene, background, _pair(scene.objects, found), found)


def _pair(asked: tuple[Object, ...], found: tuple[Found, ...]) -> tuple[Verdict, ...]:
    """The pairing of objects asked for with objects found that earns the most marks."""
    candidates = [*found, *[None] * len(asked)]
    pairings = (
        tuple(_judge(thing, seen) for thing, seen in zip(asked, order, strict=True))
        for order in permutations(candidates[: len(asked) + 4], len(asked))
    )
    return max(pairings, key=lambda verdicts: sum(verdict.marks for verdict in verdicts))


def _judge(asked: Object, seen: Found | None) -> Verdict:
    if seen is None:
        return Verdict(False, False, False)
    return Verdict(seen.colour == asked.colour, seen.shape == asked.shape, seen.place_is(asked.place))


def _measure(pixels: np.ndarray, border: np.ndarray, region: np.ndarray, others: np.ndarray) -> Found:
    """Colour, shape and centre of one region; edge pixels count by how much of them is covered."""
    away = np.linalg.norm(pixels - border, axis=-1)
    core = np.median(pixels[region & (away >= np.quantile(away[region], 0.5))], axis=0)
    towards = core - border
    alpha = np.clip((pixels - border) @ towards / (towards @ towards), 0, 1) * (
        _largest_neighbour(region) & ~others
    )
    axis = (np.arange(SIDE) + 0.5) / SIDE
    centre = (float(alpha.sum(0) @ axis / alpha.sum()), float(alpha.sum(1) @ axis / alpha.sum()))
    return Found(_nearest(core, OBJECT_COLOURS, COLOUR_TOLERANCE), _shape(alpha, centre), centre)


def _shape(alpha: np.ndarray, centre: tuple[float, float]) -> str | None:
    """The template of equal area that overlaps most."""
    best, name = SHAPE_OVERLAP, None
    for shape in SHAPES:
        radius = float(np.sqrt(alpha.sum() / SIDE**2 / _UNIT_AREA[shape]))
        for scale in (0.94, 1.0, 1.06):
            template = coverage(shape, np.array(centre), radius * scale)
            overlap = float(np.minimum(alpha, template).sum() / np.maximum(alpha, template).sum())
            if overlap > best:
                best, name = overlap, shape
    return name


def _regions(pixels: np.ndarray, border: np.ndarray) -> list[np.ndarray]:
    """Masks of the objects: connected regions, split where two colours touch; largest first."""
    palette = np.array(list(OBJECT_COLOURS.values())) / 255
    distances = np.linalg.norm(pixels[:, :, None] - palette, axis=-1)  # [y, x, colour]
    nearest = np.where(distances.min(-1) < COLOUR_TOLERANCE, distances.argmin(-1), -1)
    masks: list[np.ndarray] = []
    for region in _connected(np.linalg.norm(pixels - border, axis=-1) > CONTRAST):
        # An edge blends two colours into a third, but its pixels are few and scattered.
        colours = [_connected(region & (nearest == colour)) for colour in range(len(palette))]
        cores = [max(parts, key=np.sum) for parts in colours if parts and max(map(np.sum, parts)) >= SPLIT]
        masks.extend(_spread(cores, region) if len(cores) > 1 else [region])
    masks = [mask for mask in masks if mask.sum() >= SMALLEST]
    return sorted(masks, key=lambda mask: -int(mask.sum()))


def _spread(cores: list[np.ndarray], region: np.ndarray) -> list[np.ndarray]:
    """Divide a region among its cores, each pixel to the nearest."""
    owner = sum((index + 1) * core for index, core in enumerate(cores))
    while (missing := region & (owner == 0)).any():
        owner = np.where(missing, _largest_neighbour(owner), owner)
    return [owner == index + 1 for index in range(len(cores))]


def _connected(mask: np.ndarray) -> list[np.ndarray]:
    """Connected regions of a mask: labels spread, the largest first, until none changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while not np.array_equal(spread := np.where(mask, _largest_neighbour(labels), 0), labels):
        labels = spread
    return [labels == label for label in np.unique(labels) if label]


def _largest_neighbour(values: np.ndarray) -> np.ndarray:
    """The largest of each pixel and its four neighbours; values are not negative."""
    padded = np.pad(values, 1)
    beside = [padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]]
    return np.asarray(np.maximum.reduce([values, *beside]))


def _border_colour(pixels: np.ndarray) -> np.ndarray:
    """Median of the outer ring, two pixels wide."""
    ring = np.ones(pixels.shape[:2], bool)
    ring[2:-2, 2:-2] = False
    return np.asarray(np.median(pixels[ring], axis=0))


def _nearest(colour: np.ndarray, names: dict[str, RGB], tolerance: float) -> str | None:
    distances = {name: float(np.linalg.norm(colour - np.array(rgb) / 255)) for name, rgb in names.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= tolerance else None


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    """f64 [64, 64, 3] in 0..1."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image = image.convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float64) / 255


def _share(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 1.0


_UNIT_AREA = {
    shape: float(coverage(shape, np.array([0.5, 0.5]), 0.25, 256).mean() / 0.25**2) for shape in SHAPES
}
