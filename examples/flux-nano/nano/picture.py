"""Drawing a scene: anti-aliased signed-distance shapes on a plain background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nano.scene import BACKGROUNDS, OBJECT_COLOURS, PLACES, Scene

SIDE = 64  # pixels
RADIUS = (0.125, 0.145)  # of the side, the same for all objects
SHIFT = 0.015  # largest jitter of a place, of the side
TINT = 4.0  # largest jitter of a colour, of 255


@dataclass(frozen=True)
class Jitter:
    """What a caption does not say. The same jitter draws the two pictures of an edit."""

    shift: np.ndarray  # [objects, 2] x, y, of the side
    radius: np.ndarray  # [objects] of the side
    tint: np.ndarray  # [1 + objects, 3] background and objects, channel, of 255

    @classmethod
    def sample(cls, rng: np.random.Generator, objects: int = 2) -> Jitter:
        """Random jitter for so many objects."""
        shift = rng.uniform(-SHIFT, SHIFT, (objects, 2))
        return cls(shift, rng.uniform(*RADIUS, objects), rng.uniform(-TINT, TINT, (1 + objects, 3)))

    @classmethod
    def none(cls, objects: int = 2) -> Jitter:
        """Exact places and colours, middling sizes."""
        return cls(np.zeros((objects, 2)), np.full(objects, sum(RADIUS) / 2), np.zeros((1 + objects, 3)))


def draw(scene: Scene, jitter: Jitter | None = None, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3]. Every place and the background must be named."""
    if scene.background is None:
        raise ValueError("cannot draw a scene without a background")
    jitter = jitter or Jitter.none(len(scene.objects))
    picture = np.broadcast_to(BACKGROUNDS[scene.background] + jitter.tint[0], (side, side, 3))
    for index, thing in enumerate(scene.objects):
        if thing.place is None:
            raise ValueError(f"cannot draw {thing}: it has no place")
        centre = np.array(PLACES[thing.place]) + jitter.shift[index]
        alpha = coverage(thing.shape, centre, jitter.radius[index], side)[..., None]
        picture = picture + alpha * (OBJECT_COLOURS[thing.colour] + jitter.tint[index + 1] - picture)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def coverage(shape: str, centre: np.ndarray, radius: float, side: int = SIDE) -> np.ndarray:
    """Share of each pixel that a shape covers, [side, side]; centre (x, y) and radius of the side."""
    axis = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(axis - centre[0], axis - centre[1])
    return np.clip(0.5 - distance(shape, x / radius, y / radius) * radius * side, 0.0, 1.0)


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a shape of radius 1 around its centroid, negative inside; y points down.

    The sizes give the five shapes about the same weight to the eye. Beyond corners the distance is a lower
    bound, which is enough for anti-aliasing.
    """
    if shape == "circle":
        return np.hypot(x, y) - 1.0
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.9
    if shape == "diamond":
        return (np.abs(x) + np.abs(y) - 1.2) / np.sqrt(2.0)
    if shape == "triangle":
        # Three half-planes at distance R/2 from the centroid of an upright triangle of circumradius R = 1.26.
        sides = [np.sin(angle) * np.abs(x) + np.cos(angle) * y for angle in (0.0, 2 * np.pi / 3)]
        return np.maximum(*sides) - 0.63
    if shape == "cross":
        long, wide = 1.08, 0.36
        along = np.maximum(np.abs(x) - long, np.abs(y) - wide)
        return np.minimum(along, np.maximum(np.abs(y) - long, np.abs(x) - wide))
    raise ValueError(f"no such shape: {shape}")


def psnr(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture, dB: uint8 [N, H, W, 3] -> [N]; 108 when nothing differs."""
    error = np.square(pictures.astype(np.float64) - others).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-6))
