"""A manifest of jobs: many pictures from one file, JSONL, one object a line. A job is one picture:

{"prompt": "a red circle", "size": "64x64", "seed": 3, "output": "circle.png"}
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flux_trt.runtime import notation
from flux_trt.runtime.errors import RequestError


def _written(read: Callable[[str], tuple[int, ...]]) -> BeforeValidator:
    """Text is read by `read`, a list is a tuple; anything else is left to be judged."""

    def convert(value: Any) -> Any:
        if isinstance(value, str):
            return read(value)
        return tuple(value) if isinstance(value, list) else value

    return BeforeValidator(convert)


class Fields(BaseModel):
    """What a job asks for: the options of `flux-run` by their names; None is the command's default.

    Only types are looked at here: what fits together, and with the bundle, is the request's to say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    prompt: str | None = None
    output: Path | None = None
    size: Annotated[tuple[int, int] | None, _written(notation.size)] = Field(
        None, description="WxH or [w, h]"
    )
    steps: int | None = None
    shift: float | None = None
    sigmas: Annotated[tuple[float, ...] | None, _written(notation.sigmas)] = Field(
        None, description="S,S,... or [s, s, ...]"
    )
    solver: str | None = Field(None, description="euler or ab2")
    guidance: float | None = None
    seed: int | None = None
    prompt_2: str | None = None
    boxes: Path | list[dict[str, Any]] | None = Field(None, description="a file, or the list in it")
    negative: str | None = None
    negative_2: str | None = None
    true_cfg: float | None = None
    image: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    mask_blur: float | None = None
    mask_crop: int | None = None
    outpaint: Annotated[tuple[int, int, int, int] | None, _written(notation.margins)] = Field(
        None, description="L,T,R,B or [l, t, r, b]"
    )
    paste: bool | None = None
    reference: tuple[Path, ...] = ()
    auto_resize: bool | None = None
    control: Path | None = None
    canny: Path | None = None
    lora: tuple[str, ...] = Field((), description="FILE or FILE:STRENGTH each")
    source: str | None = Field(None, description="of an edit, as all that follow")
    target: str | None = None
    source_guidance: float | None = None
    target_guidance: float | None = None
    n_min: int | None = None
    n_max: int | None = None
    n_avg: int | None = None


@dataclass(frozen=True)
class Job:
    """A line that can be asked for."""

    line: int
    """From 1 on."""
    key: str
    """SHA-256 of the line; of lines that are the same, the second has "-2" after it, and so on."""
    fields: Fields
    """Its paths start at the jobs file's folder."""
    place: Path
    """Where its picture goes: the output, or the jobs file's stem with the key's first digits. So a job keeps
    its place when lines are inserted before it, and no other job has it."""


@dataclass(frozen=True)
class BadLine:
    """A line that cannot."""

    line: int
    key: str
    error: str
    """One line that names the field."""


DIGITS = 12
"""Hexadecimal, of a key in the name of a picture; of a million jobs two share them once in 560 files."""


def read(path: str | Path) -> Iterator[Job | BadLine]:
    """The jobs of a file, one after the other; blank lines are none.

    Raises:
        RequestError: a file that cannot be read. What is wrong with one line is a `BadLine`.
    """
    path, seen = Path(path), Counter[str]()
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                text = raw.removeprefix(b"\xef\xbb\xbf").strip()  # some editors begin a file with that mark
                if not text:
                    continue
                digest = hashlib.sha256(text).hexdigest()
                seen[digest] += 1
                key = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
                try:
                    fields = Fields.model_validate_json(text)
                except ValidationError as fault:
                    yield BadLine(number, key, f"line {number}: {_first(fault)}")
                else:
                    inside = _inside(fields, path.parent)
                    twin = key.removeprefix(digest)
                    own = path.with_name(f"{path.stem}-{digest[:DIGITS]}{twin}.png")
                    yield Job(number, key, inside, inside.output or own)
    except OSError as fault:
        raise RequestError(
            f"cannot read the jobs {path}: {fault.strerror or fault}; check the name"
        ) from None


def expect_apart(found: Iterable[Job | BadLine]) -> None:
    """Refuse two jobs with one output: the later picture would take the earlier one's place.

    Raises:
        RequestError: naming both lines.
    """
    seen: dict[Path, int] = {}
    for job in found:
        if isinstance(job, Job):
            place = job.place.resolve()
            if place in seen:
                raise RequestError(
                    f"lines {seen[place]} and {job.line} both write {job.place}; "
                    "give each an output of its own, or leave the output out"
                )
            seen[place] = job.line


def _inside(fields: Fields, folder: Path) -> Fields:
    """The same, with paths that start at `folder`."""
    found: dict[str, Any] = {"reference": tuple(folder / each for each in fields.reference)}
    found["lora"] = tuple(str(folder / each) for each in fields.lora)
    for name in ("output", "image", "mask", "control", "canny", "boxes"):
        if isinstance(value := getattr(fields, name), Path):
            found[name] = folder / value
    return fields.model_copy(update=found)


def _first(fault: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    found = fault.errors(include_url=False)[0]
    field = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return f"unknown field {field!r}; the fields are {', '.join(Fields.model_fields)}"
    if found["type"] == "json_invalid":
        return f"no JSON object ({found['ctx']['error']}); give one on each line"
    what = found["msg"].removeprefix("Value error, ").replace("\n", " ")
    return f"{field}: {what}; correct it" if field else f"{what}; give one JSON object on each line"
