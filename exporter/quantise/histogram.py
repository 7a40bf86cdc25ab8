"""How large the values of a tensor are: a histogram whose bins are the same for all tensors.

A bin is the upper twelve bits of a float32's magnitude: the exponent and four bits of mantissa, 16 bins to an
octave over all of float32's range. So it can be filled piece by piece and added to another, needs no look at
the data first, and tells a percentile to 1/16 at worst: half of E4M3's own step.
"""

from __future__ import annotations

import torch
from torch import Tensor

MANTISSA_BITS = 4
SHIFT = 23 - MANTISSA_BITS
BINS = 1 << (8 + MANTISSA_BITS)
NOT_FINITE = 255 << MANTISSA_BITS


class Histogram:
    """Counts of |x| by size, and the largest."""

    def __init__(self, counts: Tensor | None = None, amax: float = 0.0) -> None:
        """Empty, or with what was counted before: int64 [BINS]."""
        self.counts = torch.zeros(BINS, dtype=torch.int64, device="cpu") if counts is None else counts
        self.amax = amax

    def add(self, x: Tensor) -> None:
        """Count the values of a tensor of any shape."""
        size = x.detach().float().abs()
        bins = size.contiguous().view(torch.int32) >> SHIFT
        self.counts += torch.bincount(bins.flatten(), minlength=BINS).cpu()
        self.amax = max(self.amax, float(size.max()))

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def finite(self) -> bool:
        """Whether no inf and no nan was among them."""
        return not self.counts[NOT_FINITE:].any()

    def percentile(self, percent: float) -> float:
        """A value that `percent` of the sizes do not exceed: the upper edge of a bin, at most amax."""
        wanted = self.total * percent / 100
        reached = torch.searchsorted(self.counts.cumsum(0).double(), wanted).item()
        edge = torch.tensor((int(reached) + 1) << SHIFT, dtype=torch.int32, device="cpu").view(torch.float32)
        return min(float(edge), self.amax)
