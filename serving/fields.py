"""The parameters of the images API: OpenAI's, those of FLUX, and the names that other servers have for these.

Each is used, has no effect for a documented reason (`IDLE`), or is refused by name (`REFUSED`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flux_trt.serving.adapters import Wanted, wanted
from flux_trt.serving.errors import ApiError

ALIASES = {
    "num_inference_steps": "steps",
    "sample_steps": "steps",
    "guidance_scale": "guidance",
    "true_cfg_scale": "true_cfg",
    "negative_prompt": "negative",
    "loras": "lora",
    "lora_name": "lora",
}
"""Names that other servers and diffusers have, and ours."""
IDLE = ("complexity", "moderation", "style")
"""Accepted and without effect: there is no moderation, and the model has no such setting."""
REFUSED = {
    "svg": "pictures are made of pixels",
    "frame_count": "one picture is painted, not a film",
    "frame_duration_ms": "one picture is painted, not a film",
    "markup": "draw it on the picture before it is sent",
    "extra_body": "put its fields beside the others: only OpenAI's client takes it apart",
    "extra_params": "put its fields beside the others",
    "boxes": "write their rows behind the prompt; docs/tasks.md shows the form",
    "lora_path": "adapters are those of /v1/models; name them by id with lora",
}
LONGEST = 32_000  # characters of a prompt, as at OpenAI


def _numbers(value: Any) -> Any:
    """A list, as JSON or as "1,0.5"."""
    if isinstance(value, str):
        return json.loads(value) if value.startswith("[") else [each.strip() for each in value.split(",")]
    return value


Numbers = Annotated[tuple[float, ...] | None, BeforeValidator(_numbers)]
Loras = Annotated[Wanted | None, BeforeValidator(wanted)]
Margins = Annotated[tuple[int, int, int, int] | None, BeforeValidator(_numbers)]


class Fields(BaseModel):
    """What a client asks for, by OpenAI's names and ours."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: str = Field(max_length=LONGEST)
    model: str | None = None
    n: int = Field(1, ge=1)
    size: str | None = None
    width: int | None = None
    height: int | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = "auto"
    background: Literal["auto", "opaque", "transparent"] = "auto"
    output_format: Literal["png", "jpeg", "webp", "gif", "svg"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    response_format: Literal["b64_json", "url"] = "b64_json"
    user: str | None = Field(None, max_length=256)
    safety_identifier: str | None = Field(None, max_length=256)
    input_fidelity: Literal["low", "high"] | None = None
    complexity: Any = None
    moderation: Any = None
    style: Any = None

    seed: int | None = Field(None, ge=0, lt=2**64)
    steps: int | None = Field(None, ge=1)
    guidance: float | None = None
    true_cfg: float | None = None
    negative: str | None = Field(None, max_length=LONGEST)
    prompt_2: str | None = Field(None, max_length=LONGEST)
    negative_2: str | None = Field(None, max_length=LONGEST)
    shift: float | None = None
    sigmas: Numbers = None
    solver: Literal["euler", "ab2"] | None = None
    strength: float | None = None
    mask_blur: float | None = None
    mask_crop: int | None = None
    paste: bool = False
    outpaint: Margins = None
    lora: Loras = None
    auto_resize: bool = True
    canny: bool = False
    source: str | None = Field(None, max_length=LONGEST)
    source_guidance: float | None = None
    target_guidance: float | None = None
    n_min: int | None = None
    n_max: int | None = None
    n_avg: int | None = None

    @property
    def who(self) -> str | None:
        """The client's own name for its user: the new field wins over the old one."""
        return self.safety_identifier or self.user

    @property
    def pixels(self) -> tuple[int, int] | None:
        """(width, height), if it is said."""
        if self.width is not None or self.height is not None:
            if self.width is None or self.height is None:
                missing = "width" if self.width is None else "height"
                raise ApiError(400, f"{missing} is missing; give both, or size", param=missing)
            if self.size not in (None, "auto", f"{self.width}x{self.height}"):
                raise ApiError(400, "size and width with height differ; give one of them", param="size")
            return self.width, self.height
        if self.size in (None, "auto"):
            return None
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)
        if not found:
            raise ApiError(
                400, f"size {self.size!r:.40} is not WIDTHxHEIGHT, such as 1024x768, or auto", param="size"
            )
        return int(found[1]), int(found[2])


EDITS_ONLY = (
    *("input_fidelity", "strength", "mask_blur", "mask_crop", "paste", "outpaint", "auto_resize", "canny"),
    *("source", "source_guidance", "target_guidance", "n_min", "n_max", "n_avg"),
)
"""Fields that are said of a given picture."""
FLOW = ("source_guidance", "target_guidance", "n_min", "n_max", "n_avg")
"""Fields of FlowEdit, which needs `source`."""


def read(given: Mapping[str, Any], edit: bool) -> Fields:
    """What a client has sent, checked by name and type.

    Args:
        given: JSON's object, or a form's fields as text; pictures are taken out.
        edit: whether a picture is given.

    Raises:
        ApiError: 400, naming the parameter.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in REFUSED:
            raise ApiError(
                400, f"{name} is not possible: {REFUSED[name]}", param=name, code="unsupported_parameter"
            )
        ours = ALIASES.get(name, name)
        if ours in found and found[ours] != value:
            other = next(each for each in given if each != name and ALIASES.get(each, each) == ours)
            raise ApiError(400, f"{name} and {other} are the same and differ; give one of them", param=name)
        found[ours] = value
    wrong = [name for name in EDITS_ONLY if name in found and not edit]
    if wrong:
        raise ApiError(
            400,
            f"{wrong[0]} is said of a given picture; send it to /v1/images/edits",
            param=wrong[0],
            code="unsupported_parameter",
        )
    try:
        fields = Fields.model_validate(found)
    except ValidationError as fault:
        raise _fault(fault, given) from None
    _expect_possible(fields, found)
    return fields


def _fault(fault: ValidationError, given: Mapping[str, Any]) -> ApiError:
    """The first thing that is wrong."""
    first = fault.errors(include_url=False, include_context=False)[0]
    ours = str(first["loc"][0])
    name = next((each for each in given if ALIASES.get(each, each) == ours), ours)
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted([*Fields.model_fields, *ALIASES]))
        return ApiError(
            400,
            f"unknown parameter {name!r:.80}; the parameters are {known}",
            param=name[:80],
            code="unknown_parameter",
        )
    if first["type"] == "missing":
        return ApiError(400, f"{name} is missing; give it", param=name, code="missing")
    what = first["msg"].removeprefix("Value error, ")
    return ApiError(
        400, f"{name}: {what[:1].lower()}{what[1:]}; correct it", param=name, code="invalid_value"
    )


def _expect_possible(fields: Fields, found: Mapping[str, Any]) -> None:
    """What is in OpenAI's types and cannot be done here, or does not go together."""

    def refuse(name: str, why: str) -> None:
        raise ApiError(
            400, f"{name} {found.get(name)!r:.40} is not possible: {why}", param=name, code="invalid_value"
        )

    if fields.background == "transparent":
        refuse("background", "pictures have no transparency; use opaque or auto")
    if fields.output_format in ("gif", "svg"):
        refuse("output_format", "use png, jpeg or webp")
    if fields.output_compression is not None and fields.output_format == "png":
        refuse("output_compression", "a PNG loses nothing; use output_format jpeg or webp, or leave it out")
    if fields.response_format == "url":
        refuse("response_format", "pictures are in the answer; use b64_json")
    if fields.input_fidelity == "high":
        refuse("input_fidelity", "say how much to keep with strength")
    if fields.partial_images and not fields.stream:
        refuse("partial_images", "they are sent while it is painted; ask for stream: true")
    if fields.steps is not None and fields.quality not in ("auto", "standard"):
        refuse("quality", "it says the number of steps, and so does steps; give one of them")
    if fields.sigmas is not None and fields.quality not in ("auto", "standard"):
        refuse("quality", "it says the number of steps, and so do sigmas; give one of them")
    if fields.source is None and (flow := [name for name in FLOW if name in found]):
        refuse(flow[0], "it is FlowEdit's, which needs source: what the picture shows")
