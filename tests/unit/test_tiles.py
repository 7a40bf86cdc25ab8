import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_trt.runtime.pictures import tiles

TILES = st.integers(1, 40).flatmap(lambda tile: st.tuples(st.just(tile), st.integers(0, tile - 1)))


def silent(done, total):
    pass


def repeated(patch, seen=None):
    """A decoder that paints a token's first three channels over its patch."""

    def run(latents):
        if seen is not None:
            seen.append(latents.shape)
        return np.rint(np.repeat(np.repeat(latents[..., :3], patch, 1), patch, 2)).astype(np.uint8)

    return run


def averaged(patch, seen=None):
    """An encoder of two outputs: each patch's mean colour, and its mean grey."""

    def run(pixels):
        if seen is not None:
            seen.append(pixels.shape)
        _, height, width, _ = pixels.shape
        mean = pixels.reshape(1, height // patch, patch, width // patch, patch, 3).mean(axis=(2, 4))
        return mean, mean.mean(axis=-1, keepdims=True)

    return run


@given(st.integers(1, 300), TILES)
def test_tiles_cover_the_axis_and_overlap_enough(length, shape):
    tile, overlap = shape
    first = tiles.starts(length, tile, overlap)
    assert first[0] == 0
    assert first[-1] + tile == length or (first == [0] and length <= tile)
    for before, after in itertools.pairwise(first):
        assert before < after <= before + tile - overlap
    fewest = 1 if length <= tile else 1 + -(-(length - tile) // (tile - overlap))
    assert len(first) == fewest


@given(st.integers(1, 300), TILES, st.integers(1, 4))
def test_weights_are_a_partition_of_unity(length, shape, scale):
    tile, overlap = shape
    first, side = tiles.starts(length, tile, overlap), min(tile, length)
    found = tiles.weights(first, side, scale)
    assert found.shape == (len(first), side * scale)
    assert (found > 0).all()
    total = np.zeros(length * scale)
    for start, window in zip(first, found, strict=True):
        total[start * scale : (start + side) * scale] += window
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_tile_fades_in_and_out_as_a_raised_cosine():
    fading_out, fading_in = tiles.weights([0, 4], 6, 10)
    np.testing.assert_allclose(
        fading_in[:20], (1 - np.cos((np.arange(20) + 0.5) * np.pi / 20)) / 2, atol=1e-6
    )
    np.testing.assert_array_equal(fading_in[20:], 1)
    np.testing.assert_allclose(fading_out, fading_in[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("grid", "tile", "overlap"),
    [((9, 14), 5, 2), ((7, 3), 4, 1), ((5, 5), 8, 2), ((1, 17), 4, 3), ((12, 12), 4, 0), ((16, 5), 6, 5)],
)
def test_what_does_not_look_around_is_decoded_exactly(grid, tile, overlap):
    """Odd grids, axes shorter than a tile, tiles without overlap and with hardly anything but overlap."""
    latents = np.random.default_rng(0).integers(0, 256, (1, *grid, 5)).astype(np.float32)
    seen, told = [], []
    found = tiles.decode(repeated(3, seen), latents, 3, tile, overlap, lambda *each: told.append(each))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, repeated(3)(latents))
    assert set(seen) == {(1, min(tile, grid[0]), min(tile, grid[1]), 5)}
    assert told == [(k + 1, len(seen)) for k in range(len(seen))]


@pytest.mark.parametrize(("grid", "tile", "overlap"), [((9, 14), 5, 2), ((5, 5), 8, 2), ((16, 5), 6, 5)])
def test_what_does_not_look_around_is_encoded_exactly(grid, tile, overlap):
    pixels = np.random.default_rng(0).random((1, grid[0] * 4, grid[1] * 4, 3), np.float32)
    seen, told = [], []
    found = tiles.encode(averaged(4, seen), pixels, 4, tile, overlap, lambda *each: told.append(each))
    for mine, whole in zip(found, averaged(4)(pixels), strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, whole, atol=1e-6)
    assert set(seen) == {(1, min(tile, grid[0]) * 4, min(tile, grid[1]) * 4, 3)}
    assert told == [(k + 1, len(seen)) for k in range(len(seen))]


def test_a_linear_upsampler_is_exact_up_to_rounding():
    """Pixels of a ramp that is linear in the latents: blending two tiles of it gives it again."""
    y, x = np.mgrid[:20, :30].astype(np.float32)
    latents = np.stack([4 * y + 3 * x, 5 * x, 7 * y], axis=-1)[None]

    def linear(part):
        _, rows, columns, _ = part.shape
        down, across = np.mgrid[:4, :4] / 4
        inside = np.stack([4 * down + 3 * across, 5 * across, 7 * down], axis=-1)
        blocks = part[0][:, None, :, None] + inside[None, :, None]
        return np.rint(blocks.reshape(1, 4 * rows, 4 * columns, 3)).astype(np.uint8)

    found = tiles.decode(linear, latents, 4, 8, 3, silent)
    np.testing.assert_array_equal(found, linear(latents))


def test_tiles_that_disagree_are_faded_into_each_other():
    """Two tiles of which each paints its own grey: steps stay below what a cosine of that length has."""
    greys = iter((50.0, 150.0))
    found = tiles.decode(
        lambda part: np.full((1, 4 * 6, 4 * 6, 3), next(greys), np.uint8),
        np.zeros((1, 6, 10, 8), np.float32),
        4,
        6,
        2,
        silent,
    )
    row = found[0, 5, :, 0].astype(int)
    assert (row[:16] == 50).all() and (row[24:] == 150).all()
    assert np.diff(row).min() >= 0 and np.diff(row).max() <= np.ceil(100 * np.pi / 2 / 8) + 1
    assert (found == found[:, :1]).all()


def test_4096_by_4096_stays_below_100_mb_beside_the_picture():
    latents = np.zeros((1, 256, 256, 1), np.float32)
    tile = np.full((1, 64 * 16, 64 * 16, 3), 200, np.uint8)
    tracemalloc.start()
    try:
        found = tiles.decode(lambda part: tile, latents, 16, 64, 16, silent)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.shape == (1, 4096, 4096, 3)
    assert (found == 200).all()
    assert peak - found.nbytes < 100e6


@pytest.mark.parametrize("overlap", [-1, 4, 9])
def test_tiles_that_do_not_advance_are_refused(overlap):
    with pytest.raises(ValueError, match="tiles of 4 tokens cannot overlap by"):
        tiles.decode(repeated(2), np.zeros((1, 8, 8, 3), np.float32), 2, 4, overlap, silent)


def test_half_a_patch_is_refused():
    with pytest.raises(ValueError, match="30x32 pixels are no multiples of 4"):
        tiles.encode(averaged(4), np.zeros((1, 32, 30, 3), np.float32), 4, 4, 1, silent)
