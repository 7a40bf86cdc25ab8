"""What can be asked for: scenes of one or two objects, and the captions that name them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

import numpy as np

RGB = tuple[int, int, int]

OBJECT_COLOURS: dict[str, RGB] = {
    "red": (215, 35, 40),
    "green": (35, 160, 60),
    "blue": (35, 75, 215),
    "yellow": (245, 220, 50),
    "purple": (120, 50, 150),
    "orange": (245, 135, 30),
    "cyan": (60, 205, 225),
    "pink": (250, 150, 200),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (248, 248, 248),
    "black": (12, 12, 12),
    "gray": (128, 128, 128),
    **{name: OBJECT_COLOURS[name] for name in ("yellow", "blue", "green", "red", "purple")},
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond")

# Centre (x, y) of each named place, in units of the picture's side.
PLACES: dict[str, tuple[float, float]] = {
    "at the top left": (0.2, 0.2),
    "at the top": (0.5, 0.2),
    "at the top right": (0.8, 0.2),
    "at the left": (0.2, 0.5),
    "in the center": (0.5, 0.5),
    "at the right": (0.8, 0.5),
    "at the bottom left": (0.2, 0.8),
    "at the bottom": (0.5, 0.8),
    "at the bottom right": (0.8, 0.8),
}
HELD_OUT = 10  # one caption in ten is never trained on


@dataclass(frozen=True)
class Object:
    """One coloured shape; `place` is None where the caption leaves it open."""

    colour: str
    shape: str
    place: str | None = None

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}" + (f" {self.place}" if self.place else "")


@dataclass(frozen=True)
class Scene:
    """One or two objects of different colours, on a background of another colour."""

    objects: tuple[Object, ...]
    background: str | None = None

    @property
    def caption(self) -> str:
        """The scene in words."""
        text = " and ".join(map(str, self.objects))
        return text + (f" on a {self.background} background" if self.background else "")

    @property
    def held_out(self) -> bool:
        """True for the captions that training never sees."""
        return int(hashlib.sha256(self.caption.encode()).hexdigest(), 16) % HELD_OUT == 0

    @property
    def valid(self) -> bool:
        """No two objects share a colour or a place, and none has the background's colour."""
        colours = [thing.colour for thing in self.objects] + [self.background]
        places = [thing.place for thing in self.objects]
        return len(set(colours)) == len(colours) and len(set(places)) == len(places)


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random valid scene, held out or not; one object half of the time."""
    count = int(rng.integers(1, 3))
    while True:
        objects = tuple(
            Object(_pick(rng, OBJECT_COLOURS), _pick(rng, SHAPES), _pick(rng, PLACES)) for _ in range(count)
        )
        scene = Scene(objects, _pick(rng, BACKGROUNDS))
        if scene.valid:
            return scene


def sample_crowd(rng: np.random.Generator) -> Scene:
    """Up to nine objects, colours repeated: no caption says this, but an autoencoder learns more from it."""
    background = _pick(rng, BACKGROUNDS)
    colours = [name for name in OBJECT_COLOURS if name != background]
    places = [place for place in PLACES if rng.random() < 0.6]
    objects = (Object(_pick(rng, tuple(colours)), _pick(rng, SHAPES), place) for place in places)
    return Scene(tuple(objects), background)


def sample_split(rng: np.random.Generator, held_out: bool) -> Scene:
    """A random scene of the training split or of the held-out split."""
    while (scene := sample_scene(rng)).held_out != held_out:
        pass
    return scene


def test_prompts(count: int = 256, seed: int = 2026) -> list[str]:  # noqa: PT028
    """`count` different captions of the held-out split: the prompts that scores are reported on."""
    rng = np.random.default_rng(seed)
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions.setdefault(sample_split(rng, held_out=True).caption)
    return list(captions)


def blur(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with places or the background left open, so that short prompts work too."""
    kind = rng.integers(3)
    objects = scene.objects if kind == 0 else tuple(replace(thing, place=None) for thing in scene.objects)
    return Scene(objects, scene.background if kind == 1 else None)


_OBJECT = rf"an? (?P<colour>{'|'.join(OBJECT_COLOURS)}) (?P<shape>{'|'.join(SHAPES)})"
_OBJECT += rf"(?: (?P<place>{'|'.join(sorted(PLACES, key=len, reverse=True))}))?"
_BACKGROUND = re.compile(rf"(?P<rest>.*?)(?: on an? (?P<background>{'|'.join(BACKGROUNDS)}) background)?")


def parse(caption: str) -> Scene:
    """The scene a caption names; ValueError when it is not one of the captions this model knows."""
    whole = _BACKGROUND.fullmatch(" ".join(caption.lower().strip(" .").split()))
    assert whole is not None
    parts = [re.fullmatch(_OBJECT, part) for part in whole["rest"].split(" and ")]
    if len(parts) > 2 or not all(parts):
        raise ValueError(f"not a caption of flux-nano: {caption!r}; try 'a red circle in the center'")
    objects = tuple(Object(part["colour"], part["shape"], part["place"]) for part in parts if part)
    return Scene(objects, whole["background"])


def _pick(rng: np.random.Generator, names: dict[str, object] | tuple[str, ...]) -> str:  # type: ignore[type-arg]
    return list(names)[int(rng.integers(len(names)))]
