"""Edges: the control picture of a Canny bundle, made from a picture.

Source: Canny, "A Computational Approach to Edge Detection" (1986), with the thresholds of BFL's
CannyImageEncoder (src/flux/modules/image_embedders.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.errors import BackendError, RequestError

LOW, HIGH = 50, 200

Bytes = npt.NDArray[np.uint8]


def canny(image: Image.Image, low: float = LOW, high: float = HIGH) -> Image.Image:
    """White edges on black, found by OpenCV, or by scikit-image where only that is installed.

    FLUX.1 Canny was trained with OpenCV's edges. scikit-image's lie within a pixel of them and are up to two
    pixels thick: it keeps both sides of a hard step, measures a gradient by its Euclidean length where OpenCV
    adds the sides, and finds the edges of each colour on its own where OpenCV takes, at every pixel, the
    colour that changes most.

    Args:
        image: RGB, at the size that is painted: edges do not survive a resize.
        low: gradient above which a pixel continues an edge; 255 white beside black is a gradient of 1020.
        high: gradient above which a pixel starts an edge.

    Returns:
        RGB, of the same size, all values 0 or 255.

    Raises:
        RequestError: thresholds that are negative or the wrong way round.
        BackendError: neither OpenCV nor scikit-image is installed.
    """
    if not 0 <= low <= high:
        raise RequestError(f"the thresholds {low} and {high} do not fit; give 0 <= low <= high")
    pixels = np.asarray(image.convert("RGB"))
    return Image.fromarray(np.repeat(_edges(pixels, low, high)[..., None], 3, axis=2))


def _edges(pixels: Bytes, low: float, high: float) -> Bytes:
    """[H, W, 3] -> [H, W]."""
    try:
        import cv2
    except ImportError:
        pass
    else:
        return np.asarray(cv2.Canny(pixels, low, high), np.uint8)
    try:
        from skimage import feature
    except ImportError:
        raise BackendError(
            "edges need OpenCV or scikit-image, and neither is installed; "
            "install flux_trt with its extra: flux_trt[control]"
        ) from None
    return _edges_of_colours(feature, pixels, low, high)


def _edges_of_colours(feature: Any, pixels: Bytes, low: float, high: float) -> Bytes:
    """scikit-image's edges of any colour; sigma 0 because OpenCV does not smooth."""
    found = np.zeros(pixels.shape[:2], bool)
    for k in range(3):
        # It scales bytes to 0..1, and thresholds as it is told: floats keep both as they are.
        colour = pixels[..., k].astype(np.float64)
        found |= feature.canny(colour, sigma=0, low_threshold=low, high_threshold=high)
    return np.where(found, 255, 0).astype(np.uint8)
