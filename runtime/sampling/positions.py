"""Positions: where every token of the sequence stands, and the tables that turn queries and keys there.

The numbers are those of diffusers: FluxPipeline `_prepare_latent_image_ids`, Flux2Pipeline
`_prepare_text_ids`, `_prepare_latent_ids` and `_prepare_image_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flux_trt.plugins.rope import rope_tables
from flux_trt.runtime.bundle.rules import Positions
from flux_trt.runtime.pictures.latents import Grid

Floats = npt.NDArray[np.float32]


def places(rule: Positions, text: int, grids: Sequence[Grid]) -> Floats:
    """Where every token stands, float32 [text + all grids' tokens, axes].

    Args:
        rule: of the bundle.
        text: number of text tokens; they come first.
        grids: the target picture's grid, then those of the reference pictures.
    """
    words = np.zeros((text, len(rule.axes)))
    if rule.text_axis is not None:
        words[:, rule.text_axis] = np.arange(text)
    return np.concatenate(
        [words, *(_picture(rule, k, grid) for k, grid in enumerate(grids))], dtype=np.float32
    )


def rotations(rule: Positions, text: int, grids: Sequence[Grid]) -> tuple[Floats, Floats]:
    """Cosine and sine for every token, each float32 [tokens, half of a head's channels]; see `places`."""
    cos, sin = rope_tables(places(rule, text, grids), rule.axes, rule.theta)
    return cos, sin


def _picture(rule: Positions, number: int, grid: Grid) -> npt.NDArray[np.float64]:
    """The tokens of the target (number 0) or a reference picture, row by row."""
    rows, columns = grid
    found = np.zeros((rows, columns, len(rule.axes)))
    if number:
        found[..., rule.reference.axis] = rule.reference.start + (number - 1) * rule.reference.stride
    down, across = rule.grid_axes
    found[..., down] += rule.grid_scale * np.arange(rows)[:, None]
    found[..., across] += rule.grid_scale * np.arange(columns)
    return found.reshape(rows * columns, -1)
