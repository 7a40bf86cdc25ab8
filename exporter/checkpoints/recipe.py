"""Weight recipes: how a parameter is made from a checkpoint's tensors, one parameter at a time.

A recipe names the tensors it reads and says what it makes of them; its shape is known before any byte is
read, by making it of tensors without storage. A `Key` of the right dtype is the identity: its bytes can be
used where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flux_trt.exporter.checkpoints.tensorfile import AnyTensor

Tensors = Mapping[str, AnyTensor]


class Recipe:
    """A parameter made of the tensors `names`."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.names}"

    def make(self, *parts: Tensor) -> Tensor:
        """The parameter, from the tensors in the order of `names`."""
        raise NotImplementedError

    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        """The parameter's shape, or () when the parts do not fit together."""
        parts = [torch.empty(tensors[name].shape, device="meta") for name in self.names]
        try:
            return tuple(self.make(*parts).shape)
        except (RuntimeError, IndexError):
            return ()

    def load(self, tensors: Tensors) -> Tensor:
        """The parameter's value, in the checkpoint's dtype."""
        return self.make(*(tensors[name].read() for name in self.names))


class Key(Recipe):
    """The tensor as it is."""

    def make(self, *parts: Tensor) -> Tensor:
        """The one part."""
        return parts[0]


class Concat(Recipe):
    """Tensors one after another on the first axis, as in a fused q, k, v projection."""

    def make(self, *parts: Tensor) -> Tensor:
        """All parts in one; parts of different types are widened, since a cast may have spared some."""
        if len({part.dtype for part in parts}) > 1:
            parts = tuple(part.float() for part in parts)
        return torch.cat(parts)


class SwapHalves(Recipe):
    """The two halves swapped: diffusers keeps (scale, shift) where BFL has (shift, scale)."""

    def make(self, *parts: Tensor) -> Tensor:
        """The one part, its halves swapped."""
        first, second = parts[0].chunk(2)
        return torch.cat([second, first])


class Flatten(Recipe):
    """A 1x1 convolution's weight as a linear layer's: the trailing ones dropped."""

    def make(self, *parts: Tensor) -> Tensor:
        """[out, in, 1, 1] -> [out, in]."""
        return parts[0].flatten(1)
