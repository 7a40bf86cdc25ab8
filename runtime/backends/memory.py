"""How much of a bundle is on the GPU at once, and what that needs.

* resident    all stages are loaded and stay: the fastest
* sequential  one stage at a time; what passes between stages waits on the host
* streaming   all stages are loaded, TensorRT brings weights to the GPU while it computes: the smallest
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flux_trt.runtime.device import Gpu
from flux_trt.runtime.errors import GpuMemoryError
from flux_trt.runtime.manifest import STAGES, Manifest, Tensor
from flux_trt.runtime.request import Request

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


def sizes(found: Manifest, request: Request) -> dict[str, int]:
    """The dims that vary, by their names in the manifest, for a batch of a request."""
    rows, columns = request.grid
    text, tokens = found.tokenizers["t5"].length, sum(each[0] * each[1] for each in request.grids)
    return {
        "batch": min(request.batch, len(request)) * request.copies,
        "steps": request.moves,
        "text": text,
        "tokens": tokens,
        "sequence": text + tokens,
        "h": rows,
        "w": columns,
        "height": request.height,
        "width": request.width,
    }


def picture_bytes(found: Manifest, request: Request) -> int:
    """Bytes of all that goes into and out of the stages for a batch of a request."""
    known = sizes(found, request)
    tensors = [
        tensor
        for name in STAGES
        if name in found.stages and (name != "vae_encoder" or request.sees)
        for tensor in (*found.stages[name].inputs, *found.stages[name].outputs)
    ]
    return sum(math.prod(shape(tensor, known)) * np.dtype(tensor.dtype).itemsize for tensor in tensors)


def shape(tensor: Tensor, known: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's dims in numbers."""
    return tuple(dim if isinstance(dim, int) else known[dim] for dim in tensor.dims)
