"""What a file is that cannot be built from, so that it can be called by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMES: tuple[tuple[str, str], ...] = (
    (
        r"lora_(unet|te\d?|transformer)_.*|.*[._]lora[._]?[ab12]?(\.(down|up|default))?\..*|.*\.lora_(down|up|A|B)\..*"
        r"|.*\.(hada|lokr)_w\d.*|.*\.processor\..*lora.*",
        "a LoRA, not a model; give the model that it belongs to, and this with --lora",
    ),
    (r"base_model\.model\..*", "wrapped by PEFT; give the model itself, and an adapter with --lora"),
    (r"(.*\.)?distilled_guidance_layer\..*", "Chroma, not FLUX.1; it is not supported"),
    (r"(.*\.)?joint_blocks\.0\..*", "Stable Diffusion 3, not FLUX.1"),
    (r"(.*\.)?(input_blocks\.0\.0\..*|down_blocks\.0\.attentions\..*)", "Stable Diffusion, not FLUX.1"),
    (
        r"(.*\.)?transformer\.resblocks\.0\..*",
        "an OpenCLIP text encoder; give the one with transformers' names",
    ),
    (r"redux_(up|down)\..*", "FLUX.1 Redux, an adapter without a transformer of its own"),
)
"""Tensor name -> what a file with it is."""


def foreign_names(names: Iterable[str]) -> str | None:
    """What a model is by its tensors' names, when it is a known kind that is not built from."""
    names = list(names)
    return next((what for mark, what in NAMES if any(re.fullmatch(mark, name) for name in names)), None)
