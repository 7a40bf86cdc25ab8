"""Whether there is a GPU to test on, and pictures as numbers."""

import numpy as np

from flux_trt.runtime.backends.device import Gpu
from flux_trt.runtime.errors import BackendError


def fault():
    """Why there is no GPU to test on, or None."""
    try:
        Gpu().close()
    except BackendError as found:
        return str(found)
    return None


FAULT = fault()


def pixels(images):
    return [np.asarray(image, int) for image in images]
