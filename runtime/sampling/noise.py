"""Noise: the normal numbers of PyTorch's CPU generator, without PyTorch.

diffusers draws a picture's noise with `torch.Generator("cpu")`, so the same seed gives the same picture here.
Source: ATen's `normal_fill` (aten/src/ATen/native/cpu/DistributionTemplates.h): MT19937, 24-bit uniforms,
Box-Muller in blocks of 16.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.rules import Noise
from flux_trt.runtime.pictures.latents import Grid, pack
from flux_trt.runtime.sampling.rounding import rounded

Floats = npt.NDArray[np.float32]

BLOCK = 16


class Generator:
    """`torch.Generator("cpu")` of one picture: it goes on where the last draw has ended."""

    def __init__(self, seed: int) -> None:
        """Args: seed 0 to 2**64 - 1; like PyTorch's CPU generator it uses the low 32 bits."""
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed & 0xFFFFFFFF)

    def normal(self, size: int) -> Floats:
        """The next `torch.randn(size)` to 5e-7, float32 [size].

        Args:
            size: at least 16. PyTorch fills shorter tensors in another way; no latents are that short.

        Raises:
            ValueError: `size` below 16.
        """
        if size < BLOCK:
            raise ValueError(f"{size} normal numbers asked; PyTorch's blocks need at least {BLOCK}")
        uniform = _uniform(self._bits, size)
        whole = size // BLOCK * BLOCK
        numbers = np.empty(size, np.float32)
        numbers[:whole] = _box_muller(uniform[:whole])
        if whole < size:
            # PyTorch draws the last sixteen anew and lets them overlap the block before.
            numbers[-BLOCK:] = _box_muller(_uniform(self._bits, BLOCK))
        return numbers

    def latents(self, rule: Noise, grid: Grid) -> Floats:
        """The next `randn` of a picture's latents as tokens: float32 [tokens, channels x cell x cell].

        Args:
            rule: of the bundle.
            grid: latent tokens of the picture, (rows, columns).
        """
        rows, columns = grid
        wide = rule.channels * rule.cell**2
        drawn = rounded(self.normal(rows * columns * wide), rule.round)
        if rule.order == "tokens":
            return drawn.reshape(rows * columns, wide)
        return pack(drawn.reshape(1, rule.channels, rule.cell * rows, rule.cell * columns), rule.cell)[0]


def draw(rule: Noise, seeds: tuple[int, ...], grid: Grid) -> Floats:
    """One noise per seed as tokens, float32 [len(seeds), tokens, channels].

    Equal to diffusers' `prepare_latents` with one generator per picture, so a picture depends on its own seed
    alone, whatever else is painted with it.
    """
    return np.stack([Generator(seed).latents(rule, grid) for seed in seeds])


def normal(seed: int, size: int) -> Floats:
    """The first `Generator.normal` of a seed."""
    return Generator(seed).normal(size)


def _uniform(generator: np.random.MT19937, size: int) -> Floats:
    raw = generator.random_raw(size) & 0xFFFFFF
    return raw.astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: Floats) -> Floats:
    halves = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(1 - halves[:, 0]))
    angle = np.float32(2 * np.pi) * halves[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
