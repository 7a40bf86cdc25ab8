"""Pictures that are too large for the VAE in one piece: tiles that overlap and are blended.

Every tile has the same shape, so an engine needs one profile and a session plans once. Along each axis the
tiles are spread evenly; where two overlap, one fades out as a raised cosine while the other fades in, and the
weights at every place add up to one. What a tile knows worst, its border, has next to no weight.

Tiling is not exact: a VAE's group norms and the attention in its middle see the whole picture, or one tile.
So tiles may differ in tone, and what the overlap does is to spread that: from 128 pixels on, no seam of one
level of 255 was found in smooth pictures; below that, some were (benchmarks/results/tiles.json).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Tell = Callable[[int, int], None]
"""Told (tiles done, tiles in all)."""


def decode(
    run: Callable[[Floats], UInt8], latents: Floats, patch: int, tile: int, overlap: int, tell: Tell
) -> UInt8:
    """Decode latents tile by tile.

    Beside the picture and what `run` needs for a tile, this holds one row of tiles as float32.

    Args:
        run: latents [1, th, tw, C] -> pixels [1, th * patch, tw * patch, 3]; always called with one shape.
        latents: [1, h, w, C].
        patch: pixels of a token's side.
        tile: tokens of a tile's side; a shorter axis of the picture is one tile.
        overlap: tokens that neighbours share at least.
        tell: told of each tile done.

    Returns:
        pixels [1, h * patch, w * patch, 3].

    Raises:
        ValueError: tiles that do not advance: `overlap` is not from 0 to `tile - 1`.
    """
    _, h, w, _ = latents.shape
    rows, columns = starts(h, tile, overlap), starts(w, tile, overlap)
    th, tw = min(tile, h), min(tile, w)
    down, across = weights(rows, th, patch), weights(columns, tw, patch)
    result = np.empty((1, h * patch, w * patch, 3), np.uint8)
    strip = np.zeros((1, th * patch, w * patch, 3), np.float32)
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            pixels = run(np.ascontiguousarray(latents[:, top : top + th, left : left + tw]))
            place = strip[:, :, left * patch : (left + tw) * patch]
            place += pixels * np.outer(down[i], across[j])[..., None]
            tell(i * len(columns) + j + 1, len(rows) * len(columns))
        done = ((rows[i + 1] if i + 1 < len(rows) else h) - top) * patch
        result[:, top * patch : top * patch + done] = np.rint(strip[:, :done], out=strip[:, :done])
        # What the next row of tiles adds to moves up; the rest of the strip starts anew.
        strip[:, : th * patch - done] = strip[:, done:]
        strip[:, th * patch - done :] = 0
    return result


def encode(
    run: Callable[[Floats], tuple[Floats, ...]],
    pixels: Floats,
    patch: int,
    tile: int,
    overlap: int,
    tell: Tell,
) -> tuple[Floats, ...]:
    """Encode a picture tile by tile.

    Args:
        run: pixels [1, th * patch, tw * patch, 3] -> one or more arrays [1, th, tw, C], each with its own C;
            always called with one shape.
        pixels: [1, H, W, 3]; H and W are multiples of `patch`.
        patch: pixels of a token's side.
        tile: tokens of a tile's side; a shorter axis of the picture is one tile.
        overlap: tokens that neighbours share at least.
        tell: told of each tile done.

    Returns:
        What `run` gives, for the whole picture: arrays [1, H / patch, W / patch, C].

    Raises:
        ValueError: `overlap` is not from 0 to `tile - 1`, or a side is no multiple of `patch`.
    """
    _, height, width, _ = pixels.shape
    if height % patch or width % patch:
        raise ValueError(f"the sides of {width}x{height} pixels are no multiples of {patch}")
    h, w = height // patch, width // patch
    rows, columns = starts(h, tile, overlap), starts(w, tile, overlap)
    th, tw = min(tile, h), min(tile, w)
    down, across = weights(rows, th), weights(columns, tw)
    results: tuple[Floats, ...] = ()
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            y, x = slice(top * patch, (top + th) * patch), slice(left * patch, (left + tw) * patch)
            found = run(np.ascontiguousarray(pixels[:, y, x]))
            results = results or tuple(np.zeros((1, h, w, each.shape[-1]), np.float32) for each in found)
            for result, each in zip(results, found, strict=True):
                result[:, top : top + th, left : left + tw] += each * np.outer(down[i], across[j])[..., None]
            tell(i * len(columns) + j + 1, len(rows) * len(columns))
    return results


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the fewest tiles that cover `length` begin: the first at 0, the last ends at `length`.

    Raises:
        ValueError: `overlap` is not from 0 to `tile - 1`.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} tokens cannot overlap by {overlap}")
    if length <= tile:
        return [0]
    gaps = -(-(length - tile) // (tile - overlap))
    return [k * (length - tile) // gaps for k in range(gaps + 1)]


def weights(first: Sequence[int], tile: int, scale: int = 1) -> Floats:
    """How much each tile counts along one axis, float32 [tiles, tile * scale]; all tiles at a place: 1.

    Args:
        first: from `starts`, in tokens.
        tile: a tile's tokens.
        scale: places for each token.
    """
    total = np.zeros((first[-1] + tile) * scale)
    windows = list(_windows(first, tile, scale))
    for start, window in zip(first, windows, strict=True):
        total[start * scale : (start + tile) * scale] += window
    for start, window in zip(first, windows, strict=True):
        window /= total[start * scale : (start + tile) * scale]
    return np.array(windows, np.float32)


def _windows(first: Sequence[int], tile: int, scale: int) -> Iterator[npt.NDArray[np.float64]]:
    """Each tile's weight: 1, but for a raised cosine over what it shares with the one before and after."""
    for k, start in enumerate(first):
        window = np.ones(tile * scale)
        if k and (before := (first[k - 1] + tile - start) * scale):
            window[:before] *= _rise(before)
        if k + 1 < len(first) and (after := (start + tile - first[k + 1]) * scale):
            window[-after:] *= _rise(after)[::-1]
        yield window


def _rise(length: int) -> npt.NDArray[np.float64]:
    """From just above 0 to just below 1; with its mirror image it adds up to 1."""
    return np.sin((np.arange(length) + 0.5) / length * np.pi / 2) ** 2
