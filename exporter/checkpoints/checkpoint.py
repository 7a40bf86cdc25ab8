"""A checkpoint: its parts, where every tensor of them lies, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flux_trt.exporter.checkpoints.tensorfile import AnyTensor
from flux_trt.runtime.lora.term import Asked, Lora

BROUGHT_BY = {
    "clip": "--text-encoders or --clip",
    "t5": "--text-encoders or --t5",
    "text": "--text-encoders",
    "vae": "--vae",
}
"""Part -> the option that brings it where a checkpoint lacks it."""


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: its tensors, its whole config (of single files empty), whose names."""

    tensors: Mapping[str, AnyTensor]
    config: Mapping[str, Any]
    naming: Literal["diffusers", "bfl"]
    folder: Path | None = None
    """Of a diffusers or transformers model, which their own loaders can open."""
    plain: Part | None = None
    """The part as the checkpoint has it, of one with LoRAs in it."""
    loras: tuple[Lora, ...] = ()
    """What was merged into it, in order."""


@dataclass(frozen=True)
class Checkpoint:
    """All that was found, by part name: transformer, vae, clip, t5, text; what is not there is left out.

    `text` is a language model: a decoder, which prompts are read with.
    """

    source: str
    layout: str
    """For people: diffusers, bfl or all-in-one."""
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, Path] = field(default_factory=dict)
    """Text stage -> a transformers tokenizer's folder, a bundle's tokenizer file, or a GGUF file with T5."""
    index: Mapping[str, Any] = field(default_factory=dict)
    """Of `model_index.json`, whole."""
    scheduler: Mapping[str, Any] | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    """Option -> the path or hub id that was given with it."""
    asked: tuple[Asked, ...] = ()
    """LoRA files that are to be merged."""
    partial: bool = False
    """Whether those may have keys without a place."""
    loras: tuple[Lora, ...] = ()
    """Those that were."""
    notes: tuple[str, ...] = ()
    """What was found and is not used, and why; a line each."""

    @property
    def pipeline(self) -> str | None:
        """The class that `model_index.json` names."""
        return self.index.get("_class_name")
