"""Latents: a picture as a grid of tokens, how it is packed, and where each token stands.

Source: diffusers FluxPipeline `_pack_latents`, `_unpack_latents` and `_prepare_latent_image_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        patch: pixels of a token's side; 16 for FLUX.1.
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


def pack(unpacked: Floats) -> Floats:
    """Fold 2x2 patches into channels: [B, C, 2h, 2w] -> [B, h * w, 4C], channel order (c, y, x)."""
    batch, channels, height, width = unpacked.shape
    patches = unpacked.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.transpose(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def unpack(packed: Floats, grid: Grid) -> Floats:
    """The inverse of `pack`: [B, h * w, 4C] -> [B, C, 2h, 2w]."""
    (rows, columns), (batch, _, channels) = grid, packed.shape
    patches = packed.reshape(batch, rows, columns, channels // 4, 2, 2)
    return patches.transpose(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, 2 * rows, 2 * columns)


def positions(text: int, grids: Sequence[Grid]) -> Floats:
    """Where every token of the sequence stands: (t, y, x), float32 [text + all grids' tokens, 3].

    Text tokens stand at zero. The target picture is grid 0 and has t = 0; reference picture k has t = k.

    Args:
        text: number of text tokens; they come first.
        grids: the target picture's grid, then those of the reference pictures.
    """
    pictures = [
        np.stack(np.meshgrid([k], np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 3)
        for k, (rows, columns) in enumerate(grids)
    ]
    return np.concatenate([np.zeros((text, 3)), *pictures]).astype(np.float32)


def _nearest(side: int, patch: int, sizes: Sizes) -> int:
    """The multiple of `patch` inside `sizes` that is closest to `side`."""
    fewest, most = -(-sizes.smallest // patch), sizes.largest // patch
    return min(max(round(side / patch), fewest), most) * patch
