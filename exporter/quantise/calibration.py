"""The calibration: how large the values are that enter each layer, as a small JSON file.

It belongs to the weights it was made with and can be inspected, shipped and used for any FP8 build of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from flux_trt.exporter.quantise.e4m3 import Statistic
from flux_trt.exporter.quantise.histogram import Histogram
from flux_trt.runtime.bundle import plain
from flux_trt.runtime.bundle.manifest import File, Record, StageName
from flux_trt.runtime.errors import BuildError

SCHEMA = 1
ATTENTION, HEADS = "attention", ("q", "k", "v")
"""`<block>.attention.q` names the queries of a block."""


class Size(Record):
    """How large the values of a tensor are: their largest magnitude, and percentiles of it."""

    amax: float = Field(ge=0, allow_inf_nan=False)
    p99_9: float = Field(ge=0, allow_inf_nan=False)
    p99_99: float = Field(ge=0, allow_inf_nan=False)
    p99_999: float = Field(ge=0, allow_inf_nan=False)
    count: int = Field(gt=0, description="values seen")

    @classmethod
    def of(cls, seen: Histogram) -> Size:
        """From a histogram that is not empty."""
        found = {f"p{str(p).replace('.', '_')}": seen.percentile(p) for p in (99.9, 99.99, 99.999)}
        return cls(amax=seen.amax, count=seen.total, **found)


class Settings(Record):
    """What was painted."""

    prompts: list[str] = Field(min_length=1)
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    steps: int = Field(gt=0)
    guidance: float | None = Field(description="None for a model without guidance input")
    seed: int = Field(
        description="of the first prompt; the others count on, where they have none of their own"
    )
    task: str = Field(default="generate", description="as flux-run's")
    pictures: str | None = Field(
        default=None,
        description="SHA-256 of the pictures, seeds and schedule of jobs; null for prompts alone",
    )


class Calibration(Record):
    """All of `calibration.json`."""

    schema_version: int = SCHEMA
    variant: str
    weights: dict[str, str] = Field(description="part of the checkpoint -> digest of its files")
    settings: Settings
    layers: dict[StageName, dict[str, Size]] = Field(
        description="stage -> linear layer, of its input, and block.attention.q, .k, .v"
    )
    tool: str
    created: str | None

    def dumps(self) -> str:
        """The canonical text: sorted keys, two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def sizes(self, stage: StageName, names: list[str], statistic: Statistic) -> dict[str, float]:
        """The chosen statistic of some layers of a stage.

        Raises:
            BuildError: the calibration has not seen one of them.
        """
        seen = self.layers.get(stage, {})
        if missing := [name for name in names if name not in seen]:
            raise BuildError(
                f"the calibration lacks {missing[0]} of {stage}; calibrate this checkpoint again"
            )
        return {name: float(getattr(seen[name], statistic)) for name in names}


def digest_of(files: Mapping[Path, File], made: Sequence[str] = ()) -> str:
    """What identifies a part of a checkpoint: its files' hashes, whatever the files are called.

    `made` is what is done with them, where that is not the same for all that have these files.
    """
    hashes = sorted(file.sha256 for file in files.values())
    return hashlib.sha256("\n".join([*hashes, *made]).encode()).hexdigest()


def read(path: Path) -> Calibration:
    """A calibration file.

    Raises:
        BuildError: not there, or not a calibration.
    """
    try:
        return Calibration.model_validate_json(plain.text(path))
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BuildError(
            f"{path} is not a calibration ({where}: {first['msg']}); make it with flux-export calibrate"
        ) from None
    except (OSError, ValueError) as fault:
        why = (
            "not text" if isinstance(fault, UnicodeDecodeError) else getattr(fault, "strerror", None) or fault
        )
        raise BuildError(f"cannot read {path} ({why}); make it with flux-export calibrate") from None
