"""The measures of likeness, against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from likeness import C1, ms_ssim_distance, psnr, ssim

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def grey(level: int) -> np.ndarray:
    return np.full((1, 64, 64, 3), level, np.uint8)


def test_equal_pictures() -> None:
    np.testing.assert_allclose(ssim(PICTURES, PICTURES), 1)
    np.testing.assert_allclose(ms_ssim_distance(PICTURES, PICTURES), 0, atol=1e-12)
    assert (psnr(PICTURES, PICTURES) > 140).all()


def test_plain_pictures_differ_in_luminance_alone() -> None:
    a, b = 100.0, 140.0
    expected = (2 * a * b + C1) / (a * a + b * b + C1)
    assert ssim(grey(100), grey(140)) == pytest.approx([expected])
    weight = 0.3001 / (0.0448 + 0.2856 + 0.3001)
    assert ms_ssim_distance(grey(100), grey(140)) == pytest.approx([1 - expected**weight])
    assert psnr(grey(100), grey(140)) == pytest.approx([20 * np.log10(255 / 40)])


def test_unrelated_pictures_have_no_structure_in_common() -> None:
    assert abs(ssim(PICTURES, PICTURES[::-1])[0]) < 0.1


def test_more_noise_is_less_alike() -> None:
    smooth = np.tile(np.linspace(40, 210, 64)[:, None, None], (1, 1, 64, 3))
    noisy = [np.clip(smooth + RNG.normal(0, s, smooth.shape), 0, 255).astype(np.uint8) for s in (2, 8, 32)]
    still = np.clip(smooth, 0, 255).astype(np.uint8)
    distances = [float(ms_ssim_distance(each, still)[0]) for each in noisy]
    likeness = [float(ssim(each, still)[0]) for each in noisy]
    assert distances == sorted(distances) and distances[0] < 0.1 < distances[-1]
    assert likeness == sorted(likeness, reverse=True)
