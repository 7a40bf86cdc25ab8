"""How strong an update is: alpha / rank, or what PEFT's settings say.

Sources: PEFT's LoraConfig (rank_pattern, alpha_pattern, use_rslora) and get_pattern_key; diffusers'
loaders/lora_base.py (`lora_adapter_metadata`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.stored import AGAIN, Stored

METADATA = "lora_adapter_metadata"
SIDE = "adapter_config.json"
Settings = Mapping[str, Any]


def settings(path: Path, metadata: Mapping[str, str], owners: Mapping[str, str]) -> dict[str, Settings]:
    """Part -> PEFT's settings, of the header or of an `adapter_config.json` beside the file; {}: none.

    Raises:
        CheckpointError: settings that are none, or of another kind of adapter.
    """
    side = path.parent / SIDE
    if (said := metadata.get(METADATA)) is not None:
        found = _object(path, said, f"the header's {METADATA}")
        return {
            part: {
                name.partition(".")[2]: each for name, each in found.items() if name.startswith(f"{owner}.")
            }
            for part, owner in owners.items()
        }
    if path.name == "adapter_model.safetensors" and side.is_file():
        own = _object(side, side.read_text(encoding="utf-8", errors="replace"), "it")
        if own.get("peft_type", "LORA") != "LORA":
            raise CheckpointError(
                f"{side} is PEFT's {str(own['peft_type'])[:20]}, which is not read; LoRA and DoRA are"
            )
        return {"transformer": own}
    return {}


def _object(path: Path, text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: {what} is no JSON object; {AGAIN}")
    return found


def peft_scale(said: Settings, module: str, rank: int, path: Path) -> float:
    """The scale of a module, dotted and without prefix, by PEFT's settings.

    Raises:
        CheckpointError: settings that are no numbers.
    """
    patterns = said.get("alpha_pattern") or {}
    alpha = said.get("lora_alpha", rank)
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path}: its alpha_pattern is no JSON object; {AGAIN}")
    for name, each in patterns.items():
        if not re.fullmatch(r"[\w.]+", name):  # PEFT takes expressions, and a file's may never end
            raise CheckpointError(
                f"{path}: {name[:40]!r} of its alpha_pattern is no module's name; merge it first"
            )
        if module == name or module.endswith(f".{name}"):
            alpha = each
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{path}: its lora_alpha is {str(alpha)[:20]!r}; {AGAIN}")
    return alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)


def alpha_of(info: Stored, module: str) -> float:
    """The number that a module's alpha is.

    Raises:
        CheckpointError: not one finite number.
    """
    if math.prod(info.shape) != 1:
        raise CheckpointError(f"{info.file}: {module}.alpha is no single number; {AGAIN}")
    found = float(info.read().item())
    if not math.isfinite(found):
        raise CheckpointError(f"{info.file}: {module}.alpha is {found}; {AGAIN}")
    return found
