import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks import kontext


def test_each_preferred_size_is_its_own_choice():
    assert len(kontext.PREFERRED) == 17
    for size in kontext.PREFERRED:
        assert kontext.preferred_size(*size) == size
        assert kontext.reference_size(*size, 16, auto_resize=True, area=1024 * 1024) == size
        assert kontext.reference_size(*size, 16, auto_resize=True) == size


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ((3000, 3000), (1024, 1024)),
        ((1920, 1080), (1392, 752)),
        ((20, 9000), (672, 1568)),
        ((1, 1), (1024, 1024)),
    ],
)
def test_the_nearest_aspect_ratio_wins(given, chosen):
    assert kontext.preferred_size(*given) == chosen


def test_a_small_model_gets_the_preferred_sizes_scaled():
    assert kontext.reference_size(500, 500, 16, True, area=64 * 64) == (64, 64)
    assert kontext.reference_size(100, 400, 16, True, area=64 * 64) == (48, 96)  # of 672 x 1568: 42 x 98
    assert kontext.reference_size(400, 100, 16, True, area=512 * 512) == (784, 336)


@given(st.integers(16, 9000), st.integers(16, 9000), st.integers(32, 2048))
def test_scaled_sizes_keep_area_and_aspect_within_a_patch(width, height, side):
    w, h = kontext.reference_size(width, height, 16, True, area=side * side)
    whole = kontext.reference_size(width, height, 16, True)
    assert w % 16 == h % 16 == 0
    for scaled, unscaled in zip((w, h), whole, strict=True):
        assert abs(scaled - unscaled * side / 1024) <= 8 or scaled == 16


@given(st.integers(16, 9000), st.integers(16, 9000))
def test_without_auto_resize_a_picture_keeps_its_size_in_whole_patches(width, height):
    assert kontext.reference_size(width, height, 16, False, 64 * 64) == (
        width - width % 16,
        height - height % 16,
    )


@pytest.mark.parametrize("auto_resize", [True, False])
def test_less_than_a_patch_is_refused(auto_resize):
    with pytest.raises(
        RequestError, match="has 15x400 pixels and each side needs at least 16; give a larger"
    ):
        kontext.reference_size(15, 400, 16, auto_resize)
