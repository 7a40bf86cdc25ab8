"""Rounding to bfloat16, which NumPy does not have: the numbers stay float32."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def rounded(values: Floats, to: Literal["bf16"] | None) -> Floats:
    """The nearest bfloat16 numbers, ties to even, for finite values; with None the values as they are."""
    if to is None:
        return values
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    up = (bits >> 16 & 1) + np.uint32(0x7FFF)
    return (bits + up & np.uint32(0xFFFF0000)).view(np.float32)
