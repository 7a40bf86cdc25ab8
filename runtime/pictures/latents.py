"""Latents: a picture as a grid of tokens, and how they are packed.

Source: diffusers FluxPipeline `_pack_latents` and `_unpack_latents`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.manifest import Sizes
from flux_trt.runtime.errors import RequestError

Floats = npt.NDArray[np.float32]

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of latent tokens: a picture's height and width in patches."""


def grid(width: int, height: int, patch: int, sizes: Sizes) -> Grid:
    """The token grid of a picture of `width` x `height` pixels.

    Args:
        width: in pixels.
        height: in pixels.
        patch: pixels of a token's side.
        sizes: what the bundle accepts.

    Raises:
        RequestError: a size that the bundle does not accept, with the nearest one that it does.
    """
    near = _nearest(width, patch, sizes), _nearest(height, patch, sizes)
    if near != (width, height):
        raise RequestError(
            f"size {width}x{height} is not possible: sides are multiples of {patch} "
            f"from {sizes.smallest} to {sizes.largest}; the nearest is {near[0]}x{near[1]}"
        )
    return height // patch, width // patch


def pack(unpacked: Floats, cell: int = 2) -> Floats:
    """Fold cells into channels: [B, C, cell h, cell w] -> [B, h w, C cell cell], channel order (c, y, x)."""
    batch, channels, height, width = unpacked.shape
    rows, columns = height // cell, width // cell
    cells = unpacked.reshape(batch, channels, rows, cell, columns, cell)
    return cells.transpose(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * cell * cell)


def unpack(packed: Floats, grid: Grid, cell: int = 2) -> Floats:
    """The inverse of `pack`: [B, h w, C cell cell] -> [B, C, cell h, cell w]."""
    (rows, columns), (batch, _, wide) = grid, packed.shape
    cells = packed.reshape(batch, rows, columns, wide // cell**2, cell, cell)
    return cells.transpose(0, 3, 1, 4, 2, 5).reshape(batch, wide // cell**2, cell * rows, cell * columns)


def _nearest(side: int, patch: int, sizes: Sizes) -> int:
    """The multiple of `patch` inside `sizes` that is closest to `side`."""
    fewest, most = -(-sizes.smallest // patch), sizes.largest // patch
    return min(max(round(side / patch), fewest), most) * patch
