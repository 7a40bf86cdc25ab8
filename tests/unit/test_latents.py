import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_trt.runtime.bundle.manifest import Sizes
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import latents
from flux_trt.runtime.pictures.encoded import EncodedPicture

SIZES = Sizes(smallest=64, largest=256)


def test_grid_has_rows_first():
    assert latents.grid(256, 64, 16, SIZES) == (4, 16)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ((100, 64), "96x64"),
        ((64, 121), "64x128"),
        ((8, 64), "64x64"),
        ((64, 5000), "64x256"),
        ((0, 0), "64x64"),
    ],
)
def test_refused_sizes_name_the_nearest_allowed_one(asked, nearest):
    with pytest.raises(RequestError, match=f"the nearest is {nearest}$"):
        latents.grid(*asked, 16, SIZES)


@given(st.integers(0, 6000), st.integers(1, 400), st.integers(0, 4000))
def test_the_nearest_size_is_allowed(side, smallest, more):
    sizes = Sizes(smallest=smallest, largest=smallest + 16 + more)
    near = latents._nearest(side, 16, sizes)
    assert sizes.smallest <= near <= sizes.largest
    assert latents.grid(near, near, 16, sizes) == (near // 16, near // 16)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_unpack_undoes_pack(batch, rows, columns, channels, cell):
    shape = (batch, channels, cell * rows, cell * columns)
    unpacked = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    packed = latents.pack(unpacked, cell)
    assert packed.shape == (batch, rows * columns, channels * cell * cell)
    np.testing.assert_array_equal(latents.unpack(packed, (rows, columns), cell), unpacked)


def test_a_picture_without_deviation_draws_nothing():
    """An encoder may give the mode alone; then the generator goes to the picture's own noise."""

    def draw(grid):
        return np.full((6, 4), 2, np.float32)

    def refuse(grid):
        raise AssertionError

    mode, deviation = np.ones((6, 4), np.float32), np.full((6, 4), 0.5, np.float32)
    np.testing.assert_array_equal(EncodedPicture(mode, deviation, (2, 3)).sample(draw), mode + 1)
    np.testing.assert_array_equal(EncodedPicture(mode, None, (2, 3)).sample(refuse), mode)
