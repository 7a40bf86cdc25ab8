"""What a `QKNormRope` node may look like: its name, attributes, shapes and dtypes; see the README beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NAME, VERSION, NAMESPACE = "QKNormRope", "1", ""
INPUTS = ("qkv", "q_scale", "k_scale", "cos", "sin")
APART = ("q", "k", *INPUTS[1:])
"""Inputs of a node that takes queries and keys as two tensors."""
OUTPUTS = ("q", "k")
OF_ITS_OWN = ("qkv", "q", "q_scale")
"""Inputs whose shapes the others must fit."""
DTYPES = ("float16", "bfloat16", "float32")
FP8 = "float8_e4m3"
STEP, SMALLEST, LARGEST = 16, 32, 256
"""Head dims are multiples of STEP, so that every row starts at a multiple of 16 bytes in every dtype."""

Dims = Sequence[int]


@dataclass(frozen=True)
class Attributes:
    """The attributes of a node.

    Raises:
        ValueError: a value that means nothing.
    """

    num_heads: int
    epsilon: float = 1e-6
    fp8_scales: tuple[float, float] | None = None
    """What 1.0 in E4M3 stands for, in q and in k; None writes qkv's dtype. Only the plugin has it."""

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"{NAME}: num_heads {self.num_heads} is not a number of heads")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"{NAME}: epsilon {self.epsilon} is not a finite number of at least 0")
        scales = self.fp8_scales or (1.0, 1.0)
        if len(scales) != 2 or not all(math.isfinite(scale) and scale > 0 for scale in scales):
            raise ValueError(
                f"{NAME}: fp8_scales {self.fp8_scales} are not two positive numbers, of q and of k"
            )


def check(attributes: Attributes, inputs: Sequence[Dims]) -> None:
    """Whether these shapes fit each other; a dim of -1 is not known yet and fits.

    Args:
        attributes: the node's.
        inputs: of qkv [B, L, C], q_scale [E], k_scale [E], cos [L, E / 2] and sin [L, E / 2]; or with q and
            k [B, L, C] apart, of one shape, instead of qkv.

    Raises:
        ValueError: they do not.
    """
    names = names_of(len(inputs))
    apart = names == APART
    if [len(dims) for dims in inputs] != [*[3] * (1 + apart), 1, 1, 2, 2]:
        ranks = ", ".join(f"{name} {list(dims)}" for name, dims in zip(names, inputs, strict=False))
        raise ValueError(
            f"{NAME}: inputs are qkv [B, L, C] or q and k [B, L, H E], then q_scale [E], k_scale [E], "
            f"cos, sin [L, E / 2]: {ranks}"
        )
    (_, L, C), (E,) = inputs[0], inputs[1 + apart]
    if E % STEP or not SMALLEST <= E <= LARGEST:
        raise ValueError(f"{NAME}: head dim {E} is not a multiple of {STEP} from {SMALLEST} to {LARGEST}")
    if C % STEP or (1 if apart else 2) * attributes.num_heads * E > C:
        what = "queries" if apart else "queries and keys"
        raise ValueError(
            f"{NAME}: {C} channels are not a multiple of {STEP} that holds {what} "
            f"of {attributes.num_heads} heads of {E}"
        )
    expected: list[Sequence[int]] = [[E], [L, E // 2], [L, E // 2]]
    if apart:
        expected = [inputs[0], *expected]
    others = [(name, dims) for name, dims in zip(names, inputs, strict=True) if name not in OF_ITS_OWN]
    for (name, dims), wanted in zip(others, expected, strict=True):
        if any(-1 not in (a, b) and a != b for a, b in zip(dims, wanted, strict=True)):
            raise ValueError(f"{NAME}: {name} is {list(dims)}, not {list(wanted)}")


def names_of(count: int) -> tuple[str, ...]:
    """Of a node's inputs, of which there are so many."""
    return APART if count == len(APART) else INPUTS


def dtype_fits(index: int, dtypes: Sequence[str], attributes: Attributes, count: int = len(INPUTS)) -> bool:
    """Whether tensor `index` of `count` inputs and the outputs has the right dtype, given those before."""
    name = names_of(count)[index] if index < count else ""
    if index == 0:
        return dtypes[0] in DTYPES[:2] or (dtypes[0] in DTYPES and not attributes.fp8_scales)
    if name in ("cos", "sin"):
        return dtypes[index] == "float32"
    if index >= count and attributes.fp8_scales:
        return dtypes[index] == FP8
    return dtypes[index] == dtypes[0]
