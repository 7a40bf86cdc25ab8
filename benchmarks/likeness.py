"""How alike pictures are: PSNR, SSIM, and MS-SSIM as a perceptual distance.

MS-SSIM compares local structure at several scales; it is computed from the pictures alone, and is not LPIPS,
whose learned weights cannot be had everywhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flux_trt.bench.quality import psnr

__all__ = ["ms_ssim_distance", "psnr", "ssim"]

Pictures = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALES = (0.0448, 0.2856, 0.3001)
"""Wang, Simoncelli and Bovik 2003 have five; the window fits three times into 64 pixels."""


def ssim(found: Pictures, expected: Pictures) -> Floats:
    """Structural similarity of each picture (Wang et al. 2004), on luma: [N, H, W, 3] -> [N]; 1 is equal."""
    luminance, structure = _terms(_luma(found), _luma(expected))
    return (luminance * structure).mean(axis=(1, 2))


def ms_ssim_distance(found: Pictures, expected: Pictures) -> Floats:
    """1 - MS-SSIM of each picture on luma, three scales: [N, H, W, 3] -> [N]; 0 is equal."""
    a, b = _luma(found), _luma(expected)
    weights, product = np.array(SCALES) / sum(SCALES), np.ones(len(a))
    for index, weight in enumerate(weights):
        luminance, structure = _terms(a, b)
        last = index == len(weights) - 1
        term = (luminance * structure if last else structure).mean(axis=(1, 2))
        product *= np.maximum(term, 0) ** weight
        a, b = _halved(a), _halved(b)
    return 1 - product


def _luma(pictures: Pictures) -> Floats:
    return pictures.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def _terms(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Luminance, and contrast and structure, of every window."""
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return luminance, (2 * covariance + C2) / (var_a + var_b + C2)


def _smooth(x: Floats) -> Floats:
    """A Gaussian window over each picture [N, H, W], where it fits."""
    taps = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        x = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis=axis) @ taps
    return x


def _halved(x: Floats) -> Floats:
    N, H, W = x.shape
    return x[:, : H // 2 * 2, : W // 2 * 2].reshape(N, H // 2, 2, W // 2, 2).mean(axis=(2, 4))
