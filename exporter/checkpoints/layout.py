"""Which networks a file holds, and whose names they have: told by the names of its tensors alone.

Sources: ComfyUI's supported_models and model_detection (prefixes of all-in-one files, `query_norm.weight`),
BFL's src/flux (the plain names), diffusers and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeVar

Naming = Literal["diffusers", "bfl"]
T = TypeVar("T")

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "clip": ("text_encoders.clip_l.transformer.", "text_encoders.clip_l."),
    "t5": ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl."),
    "text": (
        "text_encoders.qwen3_4b.transformer.",
        "text_encoders.qwen3_8b.transformer.",
        "text_encoders.qwen3vl_4b.transformer.",
        "text_encoders.mistral3_24b.transformer.",
        "text_encoders.mistral3_24b.",
    ),
    "vae": ("first_stage_model.", "vae."),
}
"""Part -> what stands before its tensors' names in files of several parts; the longest that fits counts."""

MARKS: Mapping[str, tuple[tuple[str, Naming], ...]] = {
    "transformer": (
        (r"double_blocks\.0\.img_attn\.qkv\.weight", "bfl"),
        (r"transformer_blocks\.0\.attn\.add_q_proj\.weight", "diffusers"),
        (r"content_mode_blocks\.image\.0\.q_proj\.weight", "bfl"),
        (r"mode_blocks\.image\.0\.attn\.to_q\.weight", "diffusers"),
    ),
    "clip": ((r"(text_model\.)?encoder\.layers\.0\.self_attn\.q_proj\.weight", "diffusers"),),
    "t5": ((r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight", "diffusers"),),
    "text": (
        (
            r"(language_model\.model|model\.language_model|model)\.layers\.0\.self_attn\.q_proj\.weight",
            "diffusers",
        ),
    ),
    "vae": (
        (r"decoder\.mid\.block_1\.conv1\.weight", "bfl"),
        (r"decoder\.mid_block\.resnets\.0\.conv1\.weight", "diffusers"),
    ),
}
"""Part -> a name that every file of it has, and whose name that is."""

SPELLINGS = ((re.compile(r"((?:query|key)_norm)\.weight$"), r"\1.scale"),)
"""Of BFL's transformer: how newer ComfyUI writes some names, and BFL's own."""


def split(tensors: Mapping[str, T]) -> tuple[dict[str, dict[str, T]], dict[str, T]]:
    """A file's tensors by part, without prefixes; and those that are of no part.

    Tensors without a prefix are one part: the one whose mark is among them.
    """
    parts: dict[str, dict[str, T]] = {}
    bare: dict[str, T] = {}
    for name, tensor in tensors.items():
        place = _prefixed(name)
        if place is None:
            bare[name] = tensor
        else:
            parts.setdefault(place[0], {})[place[1]] = tensor
    for part in MARKS:
        if bare and part not in parts and naming(part, bare):
            parts[part], bare = bare, {}
    return {part: parts[part] for part in MARKS if part in parts}, bare


def naming(part: str, tensors: Mapping[str, object]) -> Naming | None:
    """Whose names a part's tensors have; None: they are not that part's."""
    for mark, whose in MARKS[part]:
        if any(re.fullmatch(mark, name) for name in tensors):
            return whose
    return None


def spelled(part: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors under BFL's own spelling."""
    if part != "transformer" or naming(part, tensors) != "bfl":
        return dict(tensors)
    return {_spelled(name): tensor for name, tensor in tensors.items()}


def _spelled(name: str) -> str:
    for pattern, own in SPELLINGS:
        name = pattern.sub(own, name)
    return name


def _prefixed(name: str) -> tuple[str, str] | None:
    fits = [
        (len(prefix), part, name.removeprefix(prefix))
        for part, prefixes in PREFIXES.items()
        for prefix in prefixes
        if name.startswith(prefix)
    ]
    return max(fits)[1:] if fits else None
