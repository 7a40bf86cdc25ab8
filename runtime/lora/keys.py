"""A tensor's name in a LoRA file: the module that it changes, and its role in that.

Sources: PEFT's tuners/lora and diffusers (`lora_A`, `lora_B`, `lora_magnitude_vector`, `lora.down`,
`lora_linear_layer`), kohya-ss/sd-scripts networks/lora_flux.py (`lora_down`, `alpha`), LyCORIS modules/*.py
(`hada_*`, `lokr_*`, `dora_scale`, `diff`, `w_norm`), ComfyUI comfy/lora.py and comfy/weight_adapter
(`diff_b`, `set_weight`, `reshape_weight`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

ROLES: tuple[tuple[str, str], ...] = (
    (r"\.lora_A(?:\.[^.]+)?\.weight|[._]lora_down\.weight", "down"),
    (r"[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight|(?<=_lora[12])\.down\.weight", "down"),
    (r"\.lora_B(?:\.[^.]+)?\.weight|[._]lora_up\.weight", "up"),
    (r"[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight|(?<=_lora[12])\.up\.weight", "up"),
    (r"\.lora_B(?:\.[^.]+)?\.bias|[._]lora_up\.bias|\.diff_b|\.b_norm", "bias"),
    (r"\.dora_scale|\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", "magnitude"),
    (r"\.alpha", "alpha"),
    (r"\.hada_w1_a", "hada_w1_a"),
    (r"\.hada_w1_b", "hada_w1_b"),
    (r"\.hada_w2_a", "hada_w2_a"),
    (r"\.hada_w2_b", "hada_w2_b"),
    (r"\.lokr_w1", "lokr_w1"),
    (r"\.lokr_w1_a", "lokr_w1_a"),
    (r"\.lokr_w1_b", "lokr_w1_b"),
    (r"\.lokr_w2", "lokr_w2"),
    (r"\.lokr_w2_a", "lokr_w2_a"),
    (r"\.lokr_w2_b", "lokr_w2_b"),
    (r"\.diff|\.w_norm", "diff"),
    (r"\.set_weight", "set"),
    (r"\.reshape_weight", "reshape"),
)
"""How a name ends -> what it is of its module's update."""

OTHERS: tuple[tuple[str, str], ...] = (
    (r"\.(oft_blocks|oft_diag|oft_R(\.[^.]+)?\.weight)", "OFT"),
    (r"\.boft_\w+", "BOFT"),
    (r"\.on_input|\.ia3_l(\.[^.]+)?", "IA3"),
    (r"\.[ab][12]\.weight", "GLoRA"),
    (r"\.(vera_lambda_\w+|vera_[AB])(\.[^.]+)?", "VeRA"),
    (r"\.(hada_t[12]|lokr_t2|lora_mid\.weight)", "a LoRA of convolutions"),
)
"""How a name ends -> the kind of adapter that only it has, and that is not read."""

_ROLES = [(re.compile(f"(.+?)(?:{ending})$"), role) for ending, role in ROLES]
_OTHERS = [(re.compile(f".+(?:{ending})$"), kind) for ending, kind in OTHERS]


class Split(NamedTuple):
    """A tensor's name in two."""

    module: str
    role: str


def split(name: str) -> Split | None:
    """The module and the role; None: it does not end like any part of an update."""
    for pattern, role in _ROLES:
        if (match := pattern.match(name)) is not None:
            return Split(match[1], role)
    return None


def other_kind(name: str) -> str | None:
    """The kind of adapter that a name belongs to, if it is a known one that is not read."""
    return next((kind for pattern, kind in _OTHERS if pattern.match(name)), None)


def is_lora(names: list[str]) -> bool:
    """Whether a file with these tensors is an adapter, of whatever model and kind."""
    return any(other_kind(name) or ((at := split(name)) and at.role != "diff") for name in names)
