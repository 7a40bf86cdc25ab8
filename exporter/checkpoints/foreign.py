"""What a file is that cannot be built from, so that it can be called by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

AGAIN = "copy or download it again"
STARTS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file; give it by itself, not in a folder"),
    (b"PK\x03\x04", "a pickle (a zip of torch.save), which is not loaded; give the safetensors one"),
    (b"\x80\x02", "a pickle, which is not loaded; give the safetensors one"),
    (b"version https://git-lfs", "a Git LFS pointer and not the weights; fetch them with git lfs pull"),
    (b"<", "a page of HTML and not the weights: the download was refused; log in and download it again"),
    (b"{", "a JSON file and not the weights; give the file or folder with the weights"),
)
"""How a file begins -> what it is, and what to do."""

NAMES: tuple[tuple[str, str], ...] = (
    (
        r"lora_(unet|te\d?|transformer)_.*|.*[._]lora[._]?[ab12]?(\.(down|up|default))?\..*|.*\.lora_(down|up|A|B)\..*"
        r"|.*\.(hada|lokr)_w\d.*|.*\.processor\..*lora.*",
        "a LoRA, not a model; give the model that it belongs to, with the LoRA merged into it",
    ),
    (r"base_model\.model\..*", "wrapped by PEFT; merge the adapter and save the model itself"),
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


def foreign_file(path: Path) -> str | None:
    """What a file is by its first bytes, when it is a known kind that is no safetensors file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    return next((what for begins, what in STARTS if start.startswith(begins)), None)


def foreign_names(names: Iterable[str]) -> str | None:
    """What a model is by its tensors' names, when it is a known kind that is not built from."""
    names = list(names)
    return next((what for mark, what in NAMES if any(re.fullmatch(mark, name) for name in names)), None)
