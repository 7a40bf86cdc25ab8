"""What is to be painted, and by whom."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from flux_trt.runtime.backends.protocols import Device

# What a peer's process needs not is not imported here: it would count in the peer's cold start.

Pictures = npt.NDArray[np.uint8]
OURS = "flux_trt/"
PEERS = ("diffusers", "compile", "onnx-export", "openvino")
PeerName = Literal["diffusers", "compile", "onnx-export", "openvino"]
PROMPTS = (
    "a red circle at the top left on a white background",
    "a blue square in the center on a green background",
    "a yellow triangle at the right on a gray background",
    "a green cross at the bottom and a red diamond at the top on a white background",
)
"""Where none are given; flux-nano knows their words."""


@dataclass(frozen=True)
class Job:
    """One case: every painter gets the same one."""

    bundle: str
    checkpoint: str | None
    """A diffusers folder or hub id; peers need it."""
    device: Device
    width: int
    height: int
    steps: int
    guidance: float | None
    batch: int
    text_tokens: int
    dtype: str
    """Of the peers' weights on a GPU: what the bundle's denoiser has. On a CPU they have float32."""
    threads: int | None = None
    """That a CPU computes on; None: each painter's own choice."""

    def dumps(self) -> str:
        """As one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        """The inverse of `dumps`."""
        return cls(**json.loads(text))


class Painter(Protocol):
    """A model that is loaded and paints; it stands for a way to run the checkpoint."""

    device: str
    """Where it runs: "cpu" or "cuda"."""
    convert_s: float
    """Seconds of loading that went into converting the model."""
    bytes_loaded: int
    """Of the files with its weights and graphs."""

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        """A batch of pictures, uint8 [N, H, W, 3], on the host."""

    def close(self) -> None:
        """Let the model go."""


def files_bytes(checkpoint: str) -> int:
    """Bytes of a checkpoint folder's safetensors; 0 for a hub id."""
    folders = ("transformer", "vae", "text_encoder", "text_encoder_2")
    return sum(
        file.stat().st_size for name in folders for file in (Path(checkpoint) / name).glob("*.safetensors")
    )


def as_pictures(images: Any) -> Pictures:
    """PIL images, or float arrays in 0..1, as uint8 [N, H, W, 3]."""
    if isinstance(images, np.ndarray):
        return cast(Pictures, (images * 255).round().astype(np.uint8))
    return np.stack([np.asarray(image, np.uint8) for image in images])
