"""How much of a bundle is on the GPU at once, and what that needs.

* resident    all stages are loaded and stay: the fastest
* sequential  one stage at a time; what passes between stages waits on the host
* streaming   all stages are loaded, TensorRT brings weights to the GPU while it computes: the smallest
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flux_trt.runtime.backends.device import Gpu
from flux_trt.runtime.bundle.manifest import Stage
from flux_trt.runtime.bundle.record import Tensor
from flux_trt.runtime.errors import GpuMemoryError

MemoryMode = Literal["resident", "sequential", "streaming"]


@dataclass(frozen=True)
class Needs:
    """What loading and painting take of a GPU's memory, in bytes, but for the engines' activations.

    How much those take is known only once an engine is loaded; it is checked then.
    """

    memory: MemoryMode
    weights: Mapping[str, int]
    """By stage."""
    pictures: int
    """Buffers of one batch of pictures."""

    @property
    def total(self) -> int:
        """What must be free; streamed weights take what is left."""
        sizes = self.weights.values()
        held = {"resident": sum(sizes), "sequential": max(sizes, default=0), "streaming": 0}
        return held[self.memory] + self.pictures

    def line(self, gpu: Gpu) -> str:
        """One line for a person."""
        each = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.weights.items())
        how = {"resident": "at once", "sequential": "one at a time", "streaming": "streamed"}
        return (
            f"--memory {self.memory} needs {self.total / 1e9:.2f} GB and the activations of "
            f"{gpu.free_bytes() / 1e9:.2f} GB free on {gpu} (weights in GB, {how[self.memory]}: {each}; "
            f"pictures {self.pictures / 1e9:.2f})"
        )

    def expect_fit(self, gpu: Gpu) -> None:
        """Refuse what cannot fit before anything is loaded.

        Raises:
            GpuMemoryError: with the next mode to try.
        """
        free = gpu.free_bytes()
        if self.total > free:
            raise GpuMemoryError(
                f"--memory {self.memory} needs {self.total / 1e9:.2f} GB and the activations, and {gpu} has "
                f"{free / 1e9:.2f} GB free; {way_out(self.memory)}"
            )


def way_out(memory: MemoryMode) -> str:
    """What to try when a mode needs too much."""
    return {
        "resident": "use --memory sequential",
        "sequential": "use --memory streaming with engines built with --weight-streaming",
        "streaming": "use a smaller --size or --batch",
    }[memory]


def picture_bytes(stages: Iterable[Stage], dims: Mapping[str, int]) -> int:
    """Bytes of all that goes into and out of some stages, with these dims."""
    tensors = [tensor for stage in stages for tensor in (*stage.inputs, *stage.outputs)]
    return sum(math.prod(shape(tensor, dims)) * np.dtype(tensor.dtype).itemsize for tensor in tensors)


def shape(tensor: Tensor, dims: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's dims in numbers; those that vary are taken from `dims`."""
    return tuple(dim if isinstance(dim, int) else dims[dim] for dim in tensor.dims)
