import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_trt.runtime.bundle.manifest import Sizes
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import latents

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


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_unpack_undoes_pack(batch, rows, columns, channels):
    shape = (batch, channels, 2 * rows, 2 * columns)
    unpacked = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    packed = latents.pack(unpacked)
    assert packed.shape == (batch, rows * columns, 4 * channels)
    np.testing.assert_array_equal(latents.unpack(packed, (rows, columns)), unpacked)


def test_positions_put_text_first_and_number_references():
    found = latents.positions(2, [(2, 3), (1, 2)])
    expected = [(0, 0, 0)] * 2 + [(0, y, x) for y in range(2) for x in range(3)] + [(1, 0, 0), (1, 0, 1)]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
