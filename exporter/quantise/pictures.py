"""Pictures that a model is calibrated with, as its own VAE encodes them, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flux_trt.exporter.families.model import Model
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.quantise.stream import streamed
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.pictures.encoded import EncodedPicture

ENCODER = "vae_encoder"


def encoder(model: Model, device: str = "cpu") -> Callable[[npt.NDArray[Any]], EncodedPicture]:
    """What encodes a picture [height, width, 3] of 0..255, in one piece.

    Args:
        model: the checkpoint.
        device: a torch device.

    Raises:
        CheckpointError: it has no VAE.
    """
    if model.parts.get(ENCODER) not in model.checkpoint.parts:
        raise CheckpointError(f"{model.checkpoint.source} has no VAE to encode pictures; give it with --vae")
    (stage,) = make_stages(model, "fp32", [ENCODER])
    module, numbers = streamed(stage, device), model.numbers().model

    def encode(pixels: npt.NDArray[Any]) -> EncodedPicture:
        image = torch.from_numpy(pixels[None].astype(np.float32)).to(device)
        with torch.no_grad(), torch.device(device):
            found = module(image)
        mode, *deviation = (
            each.reshape(-1, numbers.channels).cpu().numpy()
            for each in (found if isinstance(found, tuple) else (found,))
        )
        grid = pixels.shape[0] // numbers.patch, pixels.shape[1] // numbers.patch
        return EncodedPicture(mode, deviation[0] if deviation else None, grid)

    return encode
