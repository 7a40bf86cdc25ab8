"""Whose names a LoRA file has: what stands before a module's name, and whether dots became underscores.

Names with underscores cannot be split again, so the tables are made from the modules' own names.

Sources: diffusers' loaders/lora_conversion_utils.py, ComfyUI's comfy/lora.py and lora_convert.py,
kohya-ss/sd-scripts networks/lora_flux.py, OneTrainer, LyCORIS, XLabs-AI/x-flux, BFL's src/flux/util.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flux_trt.exporter.checkpoints.lora.term import Place

PREFIXES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "transformer": (
        ("transformer.", ".", "diffusers"),
        ("model.diffusion_model.", ".", "ComfyUI"),
        ("diffusion_model.", ".", "ComfyUI"),
        ("base_model.model.transformer.", ".", "PEFT"),
        ("base_model.model.", ".", "PEFT"),
        ("lora_unet_", "_", "kohya"),
        ("lora_transformer_", "_", "OneTrainer"),
        ("lycoris_", "_", "LyCORIS"),
        ("", ".", "bare"),
    ),
    "clip": (
        ("text_encoder.", ".", "diffusers"),
        ("text_encoders.clip_l.transformer.", ".", "ComfyUI"),
        ("text_encoders.clip_l.", ".", "ComfyUI"),
        ("lora_te1_", "_", "kohya"),
        ("lora_te_", "_", "kohya"),
    ),
    "t5": (
        ("text_encoder_2.", ".", "diffusers"),
        ("text_encoders.t5xxl.transformer.", ".", "ComfyUI"),
        ("text_encoders.t5xxl.", ".", "ComfyUI"),
        ("lora_te3_", "_", "kohya"),
        ("lora_te2_", "_", "OneTrainer"),
    ),
}
"""Part -> (what stands before the names, what stands for their dots, whose form that is)."""

Tables = Mapping[str, Mapping[str, Place]]
"""Part -> dotted name of a module, whoever's -> where its update goes."""


@dataclass(frozen=True)
class Found:
    """Where a module of a file belongs."""

    place: Place
    prefix: str
    form: str


class Modules:
    """All modules that an update may be for, under every name."""

    def __init__(self, tables: Tables) -> None:
        """Args: tables: by a family."""
        self._tables = {(part, "."): dict(table) for part, table in tables.items()} | {
            (part, "_"): {name.replace(".", "_"): place for name, place in table.items()}
            for part, table in tables.items()
        }

    def find(self, module: str) -> Found | None:
        """Where a module belongs; None: there is no such module."""
        fits = [
            (len(prefix), prefix, dot, form, part)
            for part, prefixes in PREFIXES.items()
            for prefix, dot, form in prefixes
            if module.startswith(prefix)
        ]
        for _, prefix, dot, form, part in sorted(fits, reverse=True):
            name, table = module.removeprefix(prefix), self._tables[part, dot]
            place = table.get(name) or (table.get(name.rstrip("_")) if dot == "_" else None)
            if place is not None:
                return Found(place, prefix, "XLabs" if ".processor." in name else form)
        return None
