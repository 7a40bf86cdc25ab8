"""A manifest of jobs: many pictures from one file, with results beside it that a next run goes on from.

Both files are JSONL, one object a line. A job is one picture:

    {"prompt": "a red circle", "size": "64x64", "seed": 3, "output": "circle.png"}

and its result, written once the picture is on disk, or what went wrong:

    {"line": 1, "job": "9f2c...", "ok": true, "path": "circle.png", "parameters": {...}}
    {"line": 2, "job": "51aa...", "ok": false, "error": "line 2: unknown field 'sed'; ..."}
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
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
    guidance: float | None = None
    seed: int | None = None
    negative: str | None = None
    true_cfg: float | None = None
    image: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    outpaint: Annotated[tuple[int, int, int, int] | None, _written(notation.margins)] = Field(
        None, description="L,T,R,B or [l, t, r, b]"
    )
    paste: bool | None = None
    reference: tuple[Path, ...] = ()
    auto_resize: bool | None = None
    control: Path | None = None
    canny: Path | None = None
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


@dataclass(frozen=True)
class BadLine:
    """A line that cannot."""

    line: int
    key: str
    error: str
    """One line that names the field."""


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
                    yield Job(number, key, _inside(fields, path.parent))
    except OSError as fault:
        raise RequestError(
            f"cannot read the jobs {path}: {fault.strerror or fault}; check the name"
        ) from None


class Results:
    """The results beside a jobs file, each on disk before the next job begins; a context manager."""

    def __init__(self, path: str | Path) -> None:
        """Open or create the file; a last line that was cut off, as by a kill, is taken away.

        Args:
            path: of the results; the paths in it start at its folder.

        Raises:
            RequestError: a place that cannot be written.
        """
        self._path = Path(path)
        self._outputs: dict[str, str | None] = {}
        try:
            # Without a buffer: what could not be written must not come with the next record.
            self._file = self._path.open("ab", buffering=0)
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            self._file.truncate(len(whole))
        except OSError as fault:
            raise self._cannot(fault) from None
        for raw in whole.splitlines():
            self._remember(raw)

    def done(self, job: Job) -> Path | None:
        """The picture of a job that an earlier run has painted, if it is still there."""
        output = self._outputs.get(job.key)
        place = self._path.parent / output if output else None
        return place if place and place.is_file() else None

    def succeeded(self, job: Job, output: Path, parameters: Mapping[str, Any]) -> None:
        """Note a picture that has been written.

        Raises:
            RequestError: the results cannot be written; the file is as it was.
        """
        folder, place = self._path.parent.resolve(), output.resolve()
        path = str(place.relative_to(folder) if place.is_relative_to(folder) else place)
        self._add(
            {"line": job.line, "job": job.key, "ok": True, "path": path, "parameters": dict(parameters)}
        )

    def failed(self, job: Job | BadLine, error: str) -> None:
        """Note what went wrong. Errors are those of `succeeded`."""
        self._add({"line": job.line, "job": job.key, "ok": False, "error": error})

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, record: Mapping[str, Any]) -> None:
        raw = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        before = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(raw) < len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as fault:
            self._file.truncate(before)
            raise self._cannot(fault) from None
        self._remember(raw)

    def _remember(self, raw: bytes) -> None:
        """The last result of a job counts; a line that is none of ours says nothing."""
        try:
            record = json.loads(raw)
            self._outputs[str(record["job"])] = str(record["path"]) if record["ok"] is True else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return

    def _cannot(self, fault: OSError) -> RequestError:
        return RequestError(
            f"cannot write the results {self._path}: {fault.strerror or fault}; choose another place"
        )


def _inside(fields: Fields, folder: Path) -> Fields:
    """The same, with paths that start at `folder`."""
    found: dict[str, Any] = {"reference": tuple(folder / each for each in fields.reference)}
    for name in ("output", "image", "mask", "control", "canny"):
        if (value := getattr(fields, name)) is not None:
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
