"""Rotary positions: the tables that a denoiser is fed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def rope_tables(positions: npt.NDArray, axes: Sequence[int], theta: float) -> tuple[Floats, Floats]:
    """Cosines and sines of every token's rotation angles, computed in float64.

    FLUX.1 has three axes (t, y, x), FLUX.2 four. diffusers' FluxPosEmbed gives the same numbers with each
    column repeated twice; interleaved rotation needs each only once.

    Args:
        positions: [S, len(axes)], any number type; one position per token and axis.
        axes: share of the head dim that each axis rotates, all even; (16, 56, 56) for FLUX.1.
        theta: base of the wavelengths; 10000 for FLUX.1.

    Returns:
        cos and sin, float32 [S, sum(axes) / 2].

    Raises:
        ValueError: positions of another number of axes, or an odd share.
    """
    if positions.ndim != 2 or positions.shape[1] != len(axes):
        raise ValueError(f"positions {positions.shape} do not have one column for each of {len(axes)} axes")
    if any(axis % 2 for axis in axes):
        raise ValueError(f"axes {tuple(axes)} must be even: a rotation turns pairs of channels")
    columns = positions.astype(np.float64).T
    angles = np.concatenate(
        [np.outer(column, _frequencies(axis, theta)) for column, axis in zip(columns, axes, strict=True)],
        axis=1,
    )
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _frequencies(axis: int, theta: float) -> Floats:
    return 1.0 / theta ** (np.arange(0, axis, 2, dtype=np.float64) / axis)
