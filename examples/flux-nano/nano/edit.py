"""Edits: one change to a scene, told as an instruction ("make the red circle blue")."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nano.scene import BACKGROUNDS, OBJECT_COLOURS, SHAPES, Scene, sample_split

KINDS = ("colour", "shape", "background")


@dataclass(frozen=True)
class Edit:
    """`target` is `source` with one attribute changed; `index` is the object's, None for the background."""

    source: Scene
    target: Scene
    kind: str
    index: int | None = None

    @property
    def instruction(self) -> str:
        """The change in words, as said to somebody who sees the source."""
        if self.index is None:
            return f"make the background {self.target.background}"
        old, new = self.source.objects[self.index], self.target.objects[self.index]
        if self.kind == "colour":
            return f"make the {old.colour} {old.shape} {new.colour}"
        return f"turn the {old.colour} {old.shape} into a {new.shape}"

    @property
    def reverse(self) -> Edit:
        """The edit that undoes this one."""
        return Edit(self.target, self.source, self.kind, self.index)


def sample_edit(rng: np.random.Generator, held_out: bool = False) -> Edit:
    """A random change of a random scene; source and target lie in the same split (training or held out)."""
    while True:
        edit = _change(rng, sample_split(rng, held_out))
        if edit.target.valid and edit.target.held_out == held_out:
            return edit


def test_edits(count: int = 128, seed: int = 2027) -> list[Edit]:  # noqa: PT028
    """`count` edits whose source and target were both held out of training."""
    rng = np.random.default_rng(seed)
    return [sample_edit(rng, held_out=True) for _ in range(count)]


def _change(rng: np.random.Generator, source: Scene) -> Edit:
    kind = KINDS[int(rng.integers(len(KINDS)))]
    if kind == "background":
        return Edit(
            source, replace(source, background=_other(rng, tuple(BACKGROUNDS), source.background)), kind
        )
    index = int(rng.integers(len(source.objects)))
    old = source.objects[index]
    names = tuple(OBJECT_COLOURS) if kind == "colour" else SHAPES
    new = replace(old, **{kind: _other(rng, names, getattr(old, kind))})
    objects = (*source.objects[:index], new, *source.objects[index + 1 :])
    return Edit(source, replace(source, objects=objects), kind, index)


def _other(rng: np.random.Generator, names: tuple[str, ...], old: str | None) -> str:
    rest = [name for name in names if name != old]
    return rest[int(rng.integers(len(rest)))]
