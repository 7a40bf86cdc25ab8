"""Generation parameters as the text that stable-diffusion-webui ("A1111"), Forge and their readers know.

    a prompt
    Negative prompt: what to keep away from
    Steps: 12, Sampler: Euler, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 7, Size: 64x64, ...

Source: AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py (`quote`,
`parse_generation_parameters`), modules/processing.py (`create_infotext`) and
extensions-builtin/Lora/extra_networks_lora.py: a LoRA stands in the prompt as `<lora:NAME:STRENGTH>`, and its
hash under "Lora hashes". As in Forge, "CFG scale" is that of true classifier-free guidance, and the number
that FLUX.1 is told is "Distilled CFG Scale". The text is for other tools: a prompt with a line that begins with "Negative prompt:" cannot be written in it unambiguously,
and ours to paint again from is the JSON beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

SAMPLERS = {"euler": "Euler", "ab2": "AB2"}


def text(parameters: Mapping[str, Any], family: str) -> str:
    """The text of a picture's parameters, as `painted.parameters` gives them."""
    tags = [f"<lora:{_name(each)}:{each['strength']:g}>" for each in parameters.get("lora") or ()]
    lines = [" ".join([parameters["prompt"], *tags])]
    if parameters.get("negative"):
        lines.append(f"Negative prompt: {parameters['negative']}")
    pairs = ", ".join(f"{name}: {_quoted(value)}" for name, value in _fields(parameters, family).items())
    return "\n".join([*lines, pairs]).strip()


def _fields(parameters: Mapping[str, Any], family: str) -> dict[str, Any]:
    loras = parameters.get("lora") or ()
    found: dict[str, Any] = {
        "Steps": parameters["steps"],
        "Sampler": SAMPLERS.get(parameters.get("solver", "euler"), parameters.get("solver")),
        "CFG scale": _number(parameters.get("true_cfg") or 1),
        "Distilled CFG Scale": _number(parameters.get("guidance")),
        "Seed": parameters["seed"],
        "Size": f"{parameters['width']}x{parameters['height']}",
        "Model hash": str(parameters["content"])[:10],
        "Model": f"{family} {parameters['variant']}",
        "Denoising strength": _number(parameters.get("strength")),
        "Lora hashes": ", ".join(f"{_name(each)}: {each['tensors'][:12]}" for each in loras) or None,
        "Task": parameters["task"],
        "Version": f"flux_trt {parameters['flux_trt']}",
    }
    return {name: value for name, value in found.items() if value is not None}


def _name(lora: Mapping[str, Any]) -> str:
    """The file's, without what separates in these texts."""
    return re.sub("[:,<>]", "", PurePath(lora["path"]).stem)


def _number(value: float | None) -> float | int | None:
    """4 for 4.0."""
    return int(value) if value is not None and value == int(value) else value


def _quoted(value: Any) -> str:
    """As JSON where it has a separator in it."""
    found = str(value)
    return json.dumps(found, ensure_ascii=False) if set(found) & set(',:\n"') else found
