import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flux_trt.runtime.errors import BackendError, RequestError
from flux_trt.runtime.tasks import edges


@pytest.fixture
def square():
    """Pixels 24 to 70 across and 30 to 66 down."""
    image = Image.new("RGB", (96, 80), (40, 40, 40))
    ImageDraw.Draw(image).rectangle((24, 30, 70, 66), fill=(200, 60, 60))
    return image


def near_border(height, width):
    """Pixels within one of the square's border."""
    y, x = np.mgrid[:height, :width]
    inside = (x >= 23) & (x <= 71) & (y >= 29) & (y <= 67)
    return inside & ~((x > 25) & (x < 69) & (y > 31) & (y < 65))


def check_square(square):
    found = edges.canny(square)
    assert found.mode == "RGB" and found.size == square.size
    values = np.asarray(found)
    assert set(np.unique(values)) == {0, 255}
    assert (values == values[..., :1]).all()
    white = values[..., 0] > 0
    assert white[~near_border(80, 96)].sum() == 0
    assert white[26:71, 40].sum() >= 2 and white[40, 20:76].sum() >= 2, "all four sides are found"


def test_the_edges_of_a_square_lie_on_its_border(square):
    pytest.importorskip("cv2", reason="OpenCV comes with the extra flux_trt[control]")
    check_square(square)


def test_so_do_those_of_scikit_image(square, monkeypatch):
    pytest.importorskip("skimage", reason="scikit-image only stands in for OpenCV; no extra brings it")
    monkeypatch.setitem(sys.modules, "cv2", None)
    check_square(square)


def test_both_libraries_find_the_same_edges_within_a_pixel(square, monkeypatch):
    for name in ("cv2", "skimage"):
        pytest.importorskip(name, reason="two libraries are compared; the extras bring OpenCV alone")
    ImageDraw.Draw(square).ellipse((50, 10, 90, 50), fill=(40, 120, 220))
    by_opencv = np.asarray(edges.canny(square))[..., 0] > 0
    monkeypatch.setitem(sys.modules, "cv2", None)
    by_scikit_image = np.asarray(edges.canny(square))[..., 0] > 0

    def grown(mask):
        wide = np.pad(mask, 1)
        return np.any([wide[y : y + 80, x : x + 96] for y in range(3) for x in range(3)], axis=0)

    assert by_opencv.sum() > 100
    assert (by_opencv & grown(by_scikit_image)).sum() >= 0.98 * by_opencv.sum()
    assert (by_scikit_image & grown(by_opencv)).sum() >= 0.98 * by_scikit_image.sum()


def test_thresholds_are_those_of_the_gradient():
    """A step of 20 grey values has a gradient of 4 x 20 = 80: an edge only of a lower threshold."""
    pytest.importorskip("cv2", reason="OpenCV comes with the extra flux_trt[control]")
    image = Image.new("RGB", (32, 32), (100, 100, 100))
    image.paste((120, 120, 120), (16, 0, 32, 32))
    assert not np.asarray(edges.canny(image)).any()
    assert not np.asarray(edges.canny(image, 50, 81)).any()
    assert np.asarray(edges.canny(image, 50, 79)).any()
    with pytest.raises(RequestError, match="thresholds 200 and 50 do not fit"):
        edges.canny(image, 200, 50)


def test_without_either_library_the_extra_is_named(square, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(BackendError, match=r"neither is installed; .* flux_trt\[control\]$"):
        edges.canny(square)
