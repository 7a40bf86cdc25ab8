"""Reference pictures that are no part of the sequence: what a stage makes keys and values of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends.memory import shape
from flux_trt.runtime.bundle.flow import REFERENCES
from flux_trt.runtime.bundle.manifest import Stage
from flux_trt.runtime.bundle.rules import Positions
from flux_trt.runtime.sampling.positions import rotations
from flux_trt.runtime.sampling.trajectory import Trajectory

Floats = npt.NDArray[np.float32]


def seen(trajectory: Trajectory, rule: Positions) -> dict[str, Floats]:
    """The latents of a batch's reference pictures and how they are rotated, by the names that stages take.

    Each picture of the batch has them as often as it goes through the denoiser at once.
    """
    if trajectory.beside is None:
        return {}
    target, grids = trajectory.target, (trajectory.grids[0], *trajectory.beside.grids)
    cos, sin = (table[target:] for table in rotations(rule, 0, grids))
    latents = np.concatenate([trajectory.beside.packed] * trajectory.copies)
    return {REFERENCES: latents, "reference_cos": cos, "reference_sin": sin}


def nothing(stage: Stage, given: Mapping[str, object]) -> dict[str, Floats] | None:
    """What a stage makes of no reference pictures, where it is asked for that: it need not run."""
    latents = given.get(REFERENCES) if any(each.name == REFERENCES for each in stage.inputs) else None
    if not isinstance(latents, np.ndarray) or latents.shape[1]:
        return None
    known = {"batch": latents.shape[0], "reference": 0}
    return {each.name: np.zeros(shape(each, known), each.dtype) for each in stage.outputs}
