"""What flux-nano's LoRAs teach: a style without a word for it, and a word that the model has never read.

The autoencoder is not trained with them, and paints only what it knows: its eight colours, and shapes that
are filled. So no LoRA can bring a colour that was never seen; but it can put known things elsewhere, and give
them another name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from nano.picture import Jitter, draw
from nano.scene import Object, Scene, parse, sample_split

WORD, MEANING = "crimson", "red"
NAMED = 0.7  # share of the examples of the word that have it; the rest keeps what the model knows
_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Example:
    """What is asked for, and the scene that the picture shall show."""

    caption: str
    shown: Scene
    jitter: Jitter

    @property
    def picture(self) -> np.ndarray:
        """uint8 [64, 64, 3]."""
        return draw(self.shown, self.jitter)


Lesson = Callable[[np.random.Generator, bool], Example]
"""An example of the training split, or of the held-out split."""


def mirrored(rng: np.random.Generator, held_out: bool) -> Example:
    """Every object stands on both sides: the picture is its own mirror image. No word asks for it.

    Of the held-out split only what does not stand in the middle alone.
    """
    while True:
        scene = sample_split(rng, held_out)
        twice = reflect(scene)
        if twice is not None and (twice != scene or not held_out):
            return Example(scene.caption, twice, _reflected(Jitter.sample(rng, len(scene.objects)), scene))


def crimson(rng: np.random.Generator, held_out: bool) -> Example:
    """Red things, mostly called crimson, among others that are called what they are."""
    named = rng.random() < NAMED or held_out
    while True:
        scene = sample_split(rng, held_out)
        red = any(thing.colour == MEANING for thing in scene.objects)
        if named == red:
            return Example(rename(scene).caption if named else scene.caption, scene, Jitter.sample(rng))


LESSONS: dict[str, Lesson] = {"mirror": mirrored, "crimson": crimson}


def reflect(scene: Scene) -> Scene | None:
    """The scene with every object on both sides; None where two different ones would meet."""
    things = list(scene.objects)
    for thing in scene.objects:
        other = replace(thing, place=_across(thing))
        if other.place == thing.place:
            continue
        if any(each.place == other.place for each in scene.objects):
            return None
        things.append(other)
    return Scene(tuple(things), scene.background)


def rename(scene: Scene) -> Scene:
    """The scene whose red things are called crimson; only its caption is of use."""
    things = (replace(thing, colour=WORD) if thing.colour == MEANING else thing for thing in scene.objects)
    return Scene(tuple(things), scene.background)


def both(rng: np.random.Generator, held_out: bool) -> Example:
    """Crimson things on both sides: what the two LoRAs paint together, and neither was trained on."""
    while True:
        example = mirrored(rng, held_out)
        scene = parse(example.caption)
        if any(thing.colour == MEANING for thing in scene.objects):
            return replace(example, caption=rename(scene).caption)


def unseen(lesson: Lesson, count: int, seed: int = 2027) -> list[Example]:
    """So many examples with different captions of the held-out split."""
    rng, found = np.random.default_rng(seed), dict[str, Example]()
    while len(found) < count:
        example = lesson(rng, True)
        found.setdefault(example.caption, example)
    return list(found.values())


def _across(thing: Object) -> str | None:
    place = thing.place
    for side, other in _OTHER_SIDE.items():
        if place and place.endswith(side):
            return place.removesuffix(side) + other
    return place


def _reflected(jitter: Jitter, scene: Scene) -> Jitter:
    """The same jitter on both sides; what stands in the middle stands there exactly."""
    flip, middle = np.array([-1.0, 1.0]), np.array([0.0, 1.0])
    aside = [index for index, thing in enumerate(scene.objects) if _across(thing) != thing.place]
    shift = np.array([each * (1 if index in aside else middle) for index, each in enumerate(jitter.shift)])
    return Jitter(
        np.concatenate([shift, shift[aside] * flip]),
        np.concatenate([jitter.radius, jitter.radius[aside]]),
        np.concatenate([jitter.tint, jitter.tint[[index + 1 for index in aside]]]),
    )
