"""Bundles of schema 1, which knew FLUX.1 alone: what their fields are in schema 2.

What schema 1 took for granted - six stages, two encoders, three axes, Kontext's sizes - is filled in here; so
this is the one place of the runtime that knows a family. The bundle paints the same pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from flux_trt.runtime.bundle.record import BundlePath, Record

SCHEMA = 1
STAGES = {
    "clip": "prompt",
    "t5": "prompt",
    "conditioner": "schedule",
    "denoiser": "step",
    "vae_encoder": "reference",
    "vae_decoder": "picture",
}
"""In their order, and when each runs."""
KONTEXT = [
    [672, 1568],
    [688, 1504],
    [720, 1456],
    [752, 1392],
    [800, 1328],
    [832, 1248],
    [880, 1184],
    [944, 1104],
    [1024, 1024],
    [1104, 944],
    [1184, 880],
    [1248, 832],
    [1328, 800],
    [1392, 752],
    [1456, 720],
    [1504, 688],
    [1568, 672],
]
"""The sizes of its reference pictures, [width, height]."""


class Scheduler(Record):
    """The numbers of FlowMatchEulerDiscreteScheduler, under diffusers' names."""

    use_dynamic_shifting: bool
    shift: float = Field(gt=0)
    base_shift: float
    max_shift: float
    base_image_seq_len: int = Field(gt=0)
    max_image_seq_len: int = Field(gt=0)

    def converted(self) -> dict[str, Any]:
        """As a schedule."""
        if not self.use_dynamic_shifting:
            return {"kind": "constant", "shift": self.shift, "round": None}
        tokens = [self.base_image_seq_len, self.max_image_seq_len]
        return {
            "kind": "exponential",
            "tokens": tokens,
            "mu": [self.base_shift, self.max_shift],
            "round": None,
        }


class Tokenizer(Record):
    """A `tokenizers` file, the length every prompt is padded or cut to, and the padding."""

    file: BundlePath
    length: int = Field(gt=0)
    pad_id: int
    pad_token: str

    def converted(self) -> dict[str, Any]:
        """As a window of one length without a template."""
        pad = {"id": self.pad_id, "token": self.pad_token, "side": "right"}
        pad |= {"multiple": self.length, "most": self.length}
        return {"file": self.file, "prefix": "", "suffix": "", "pad": pad, "mask": False}


class Model(Record):
    """The transformer's and the VAE's numbers."""

    channels: int = Field(gt=0, multiple_of=4)
    condition_channels: int
    guidance: bool
    rope_axes: list[int]
    rope_theta: float
    patch: int

    def converted(self, follows: bool) -> dict[str, Any]:
        """As rules: three axes (reference number, y, x), noise of cells of 2 x 2 latents."""
        preferred = {"kind": "preferred", "sizes": KONTEXT, "area": 1024 * 1024}
        return {
            "patch": self.patch,
            "positions": {
                "axes": self.rope_axes,
                "theta": self.rope_theta,
                "text_axis": None,
                "grid_axes": [1, 2],
                "grid_scale": 1.0,
                "reference": {"axis": 0, "start": 1, "stride": 1},
            },
            "noise": {"channels": self.channels // 4, "cell": 2, "order": "chw", "round": None},
            "references": {"enters": "latents", "size": preferred} if follows else None,
        }


class Defaults(Record):
    """What a run uses when the caller does not say."""

    width: int
    height: int
    steps: int
    guidance: float


class Manifest(Record):
    """All of `bundle.json`; what schema 2 left as it was is looked at there."""

    schema_version: Literal[1]
    variant: str
    tasks: list[str]
    model: Model
    scheduler: Scheduler
    tokenizers: dict[str, Tokenizer]
    sizes: Any
    defaults: Defaults
    stages: dict[
        Literal["clip", "t5", "conditioner", "denoiser", "vae_encoder", "vae_decoder"], dict[str, Any]
    ]
    glue: dict[str, Any] = Field(default={})
    files: Any
    provenance: Any


def converted(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of schema 2 for that of schema 1.

    Raises:
        pydantic.ValidationError: fields that break schema 1.
    """
    old = Manifest.model_validate(fields)
    guidance: dict[str, Any] = {"kind": "none", "default": None, "negative": None}
    if old.model.guidance:
        guidance = {"kind": "embedded", "default": old.defaults.guidance, "negative": None}
    return {
        "family": "FLUX.1",
        "variant": old.variant,
        "tasks": old.tasks,
        "encoders": [{"stage": name, "tokenizer": name} for name in ("clip", "t5")],
        "tokenizers": {name: each.converted() for name, each in old.tokenizers.items()},
        "model": old.model.converted(old.variant == "kontext" or "reference" in old.tasks),
        "schedule": old.scheduler.converted(),
        "guidance": guidance,
        "sizes": old.sizes,
        "defaults": old.defaults.model_dump(exclude={"guidance"}),
        "stages": {
            name: {**old.stages[name], "runs": runs} for name, runs in STAGES.items() if name in old.stages
        },
        "glue": old.glue,
        "files": old.files,
        "provenance": _provenance(old.provenance),
    }


def _provenance(old: Any) -> Any:
    """What was given beside a checkpoint had fields of its own."""
    if not isinstance(old, dict):
        return old
    given = {name: old.get(name) for name in ("text_encoders", "vae")}
    rest = {name: value for name, value in old.items() if name not in given}
    return {**rest, "beside": {name: value for name, value in given.items() if value is not None}}
