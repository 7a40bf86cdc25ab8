"""Reference pictures that are no part of the latents: what a stage of their own makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends.memory import MemoryMode, shape
from flux_trt.runtime.backends.protocols import Buffer, Graphs
from flux_trt.runtime.bundle.flow import REFERENCES
from flux_trt.runtime.bundle.manifest import Stage
from flux_trt.runtime.bundle.record import StageName
from flux_trt.runtime.bundle.rules import Positions
from flux_trt.runtime.sampling.positions import rotations
from flux_trt.runtime.sampling.trajectory import Trajectory

Floats = npt.NDArray[np.float32]


def none(rows: int) -> dict[str, Floats]:
    """No reference pictures, for so many rows."""
    return {REFERENCES: np.zeros((rows, 0, 0), np.float32)}


class Kept:
    """What a stage made of the last reference pictures, for as long as the next ones are the same.

    There is one place only: whatever the stage makes next takes it, so that buffers which are written again
    are not taken for what they held.
    """

    def __init__(self, memory: MemoryMode) -> None:
        """In sequential mode nothing is kept: it goes to the host, and its memory to other stages."""
        self._keeps = memory != "sequential"
        self._of: str | None = None
        self._into: Mapping[str, Buffer] | None = None
        self._values: Mapping[str, Buffer] = {}

    def run(
        self,
        graphs: Graphs,
        name: StageName,
        stage: Stage,
        given: Mapping[str, Buffer | Floats],
        into: Mapping[str, Buffer] | None,
        key: str = "",
    ) -> Mapping[str, Buffer | Floats]:
        """What a stage gives, made anew only where that is needed.

        Args:
            graphs: where the stage is, if it must run.
            name: of the stage.
            stage: its contract.
            given: all that it takes.
            into: the buffers to write to, by name. None: new ones.
            key: what else tells what it makes from what it made: of the LoRAs in it.
        """
        if (none := _nothing(stage, given)) is not None:
            return none
        of = _of(given, key)
        if of is not None and of == self._of and self._at(into):
            return self._values
        made = graphs[name].run(given, into)
        if of is not None and self._keeps:
            self._of, self._into, self._values = of, into, made
        return made

    def forget(self) -> None:
        """Let it go."""
        self._of, self._into, self._values = None, None, {}

    def _at(self, into: Mapping[str, Buffer] | None) -> bool:
        if into is None or self._into is None:
            return into is self._into
        return all(self._into.get(name) is buffer for name, buffer in into.items())


def _of(given: Mapping[str, Buffer | Floats], key: str) -> str | None:
    """What tells reference pictures and their places from others."""
    arrays = [each for name, each in sorted(given.items()) if isinstance(each, np.ndarray)]
    if REFERENCES not in given or not arrays:
        return None
    digest = hashlib.sha256(key.encode())
    for each in arrays:
        digest.update(f"{each.shape}".encode() + np.ascontiguousarray(each).tobytes())
    return digest.hexdigest()


def seen(trajectory: Trajectory, rule: Positions, copies: int) -> dict[str, Floats]:
    """The latents of a batch's reference pictures and how they are rotated, by the names that stages take.

    Args:
        trajectory: of the batch.
        rule: of the bundle.
        copies: how often a picture has them: as often as it goes through a stage at once.
    """
    if trajectory.beside is None:
        return {}
    target, grids = trajectory.target, (trajectory.grids[0], *trajectory.beside.grids)
    cos, sin = (table[target:] for table in rotations(rule, 0, grids))
    latents = np.concatenate([trajectory.beside.packed] * copies)
    return {REFERENCES: latents, "reference_cos": cos, "reference_sin": sin}


def _nothing(stage: Stage, given: Mapping[str, Buffer | Floats]) -> dict[str, Floats] | None:
    """What a stage makes of no reference pictures, where it is asked for that: it need not run."""
    latents = given.get(REFERENCES)
    if not isinstance(latents, np.ndarray) or latents.shape[1]:
        return None
    known = {"batch": latents.shape[0], "reference": 0}
    return {each.name: np.zeros(shape(each, known), each.dtype) for each in stage.outputs}
