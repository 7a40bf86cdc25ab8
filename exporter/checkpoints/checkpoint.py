"""A checkpoint: its parts, where every tensor of them lies, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flux_trt.exporter.checkpoints.tensorfile import AnyTensor

BROUGHT_BY = {"clip": "--text-encoders", "t5": "--text-encoders", "vae": "--vae"}
"""Part -> the option that brings it where a checkpoint lacks it."""


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: its tensors, its whole config (of BFL files empty), whose names."""

    tensors: Mapping[str, AnyTensor]
    config: Mapping[str, Any]
    naming: Literal["diffusers", "bfl"]


@dataclass(frozen=True)
class Checkpoint:
    """All that was found, by part name: transformer, vae, clip, t5; a part that is not there is left out."""

    source: str
    layout: Literal["diffusers", "bfl"]
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, Path] = field(default_factory=dict)
    pipeline: str | None = None
    scheduler: Mapping[str, Any] | None = None
    text_encoders: str | None = None
    vae: str | None = None
