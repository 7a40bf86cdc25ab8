import pytest
from family_rules import PREFERRED, SHRUNK
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.rules import References
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks.references import painted_size, preferred_size, prepared, whole_patches
from flux_trt.runtime.tasks.request import Request

MEGAPIXEL = 1024 * 1024


def preferred(size, area=MEGAPIXEL):
    return preferred_size(PREFERRED, size, 16, area)


def following(tiny, size):
    """The tiny bundle's manifest, of a model that follows references."""
    found = manifest.read(tiny)
    model = found.model.model_copy(update={"references": References(enters="latents", size=size)})
    return found.model_copy(update={"model": model, "tasks": ["generate", "reference"]})


def test_each_preferred_size_is_its_own_choice():
    assert len(PREFERRED.sizes) == 17
    for size in map(tuple, PREFERRED.sizes):
        assert preferred(size) == size


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ((3000, 3000), (1024, 1024)),
        ((1920, 1080), (1392, 752)),
        ((20, 9000), (672, 1568)),
        ((16, 16), (1024, 1024)),
    ],
)
def test_the_nearest_aspect_ratio_wins(given, chosen):
    assert preferred(given) == chosen


def test_a_small_model_gets_the_preferred_sizes_scaled():
    assert preferred((500, 500), 64 * 64) == (64, 64)
    assert preferred((100, 400), 64 * 64) == (48, 96)  # of 672 x 1568: 42 x 98
    assert preferred((400, 100), 512 * 512) == (784, 336)


@given(st.integers(16, 9000), st.integers(16, 9000), st.integers(32, 2048))
def test_scaled_sizes_keep_area_and_aspect_within_a_patch(width, height, side):
    w, h = preferred((width, height), side * side)
    assert w % 16 == h % 16 == 0
    for scaled, unscaled in zip((w, h), preferred((width, height)), strict=True):
        assert abs(scaled - unscaled * side / 1024) <= 8 or scaled == 16


@given(st.integers(16, 9000), st.integers(16, 9000))
def test_whole_patches_are_what_is_left_of_a_picture(width, height):
    assert whole_patches((width, height), 16) == (width - width % 16, height - height % 16)


@pytest.mark.parametrize("auto_resize", [True, False])
@pytest.mark.parametrize("size", [PREFERRED, SHRUNK.model_copy(update={"least": 1, "aspect": 99})])
def test_less_than_a_patch_is_refused(tiny, size, auto_resize):
    with pytest.raises(
        RequestError, match="has 15x400 pixels and each side needs at least 16; give a larger"
    ):
        prepared(following(tiny, size), Image.new("RGB", (15, 400)), auto_resize)


def test_a_picture_may_keep_its_size(tiny):
    image = Image.linear_gradient("L").resize((70, 100)).convert("RGB")
    for size in (PREFERRED, SHRUNK):
        assert prepared(following(tiny, size), image, auto_resize=False).size == (64, 96)
    cropped = prepared(following(tiny, SHRUNK), image, auto_resize=False)
    assert cropped.tobytes() == image.crop((3, 2, 67, 98)).tobytes()


def test_the_size_that_is_painted_is_the_references(tiny):
    """The preferred one, scaled to the bundle's 48 x 32; or its own."""
    image = Image.new("RGB", (120, 80))
    of_preferred, of_shrunk = (
        Request.of(following(tiny, size), "a", reference=image) for size in (PREFERRED, SHRUNK)
    )
    assert (of_preferred.width, of_preferred.height) == (48, 32)
    assert of_preferred.references[0].size == (48, 32)
    assert (of_shrunk.width, of_shrunk.height) == of_shrunk.references[0].size == (112, 80)
    assert painted_size(following(tiny, PREFERRED), image) == (48, 32)


def test_a_model_that_follows_none(tiny):
    with pytest.raises(RequestError, match="cannot do the task reference"):
        Request.of(manifest.read(tiny), "a", reference=Image.new("RGB", (64, 64)))
    with pytest.raises(RequestError, match="follows no reference pictures"):
        prepared(manifest.read(tiny), Image.new("RGB", (64, 64)), auto_resize=True)
