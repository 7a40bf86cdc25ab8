"""The JSON of flux-bench's results: what is in every file, and what each kind of file adds.

Times are in milliseconds where a name ends in `_ms`, in seconds where it ends in `_s`. A figure that was not
measured is null, never 0.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flux_trt.bench.errors import BenchError

SCHEMA = 1


class Record(BaseModel):
    """Unchangeable, with no fields of unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Series(Record):
    """Measurements of one thing, in the order they were taken, and what they come to."""

    samples: list[float]
    n: int
    min: float
    p50: float
    p90: float
    p99: float
    mean: float
    spread: float = Field(description="interquartile range over median")

    @classmethod
    def of(cls, values: Sequence[float]) -> Series:
        """Of at least one value. Percentiles are interpolated linearly between the samples."""
        found = np.asarray(values, np.float64)
        low, p50, high, p90, p99 = np.percentile(found, [25, 50, 75, 90, 99])
        figures = {"min": found.min(), "p50": p50, "p90": p90, "p99": p99, "mean": found.mean()}
        rounded = {name: round(float(value), 6) for name, value in figures.items()}
        spread = round(float((high - low) / p50), 4) if p50 else 0.0
        return cls(samples=[round(float(v), 6) for v in found], n=len(found), spread=spread, **rounded)


class Hardware(Record):
    """The machine."""

    cpu: str
    cores: int
    memory_gb: float
    gpu: str | None
    driver: str | None
    power_limit_w: float | None = Field(description="of the GPU, as nvidia-smi tells; null on a CPU")
    cpu_features: list[str] | None = Field(
        default=None, description="of those that make networks faster, such as amx_bf16; null: not known"
    )


class BundleId(Record):
    """Which bundle."""

    name: str
    digest: str = Field(description="SHA-256 of bundle.json, which holds the hashes of all files")
    variant: str
    precision: dict[str, str] = Field(description="by stage")


class About(Record):
    """What every file carries."""

    date: str
    command: str
    hardware: Hardware
    python: str
    versions: dict[str, str | None]
    load_average: float = Field(description="of the machine over the minute before the measurement")
    bundle: BundleId


class Ratio(Record):
    """How many times as fast as the baseline, round by round: the baseline's time over this one's."""

    baseline: str
    median: float
    p25: float
    p75: float


class Quality(Record):
    """How good the pictures are that were painted in this time."""

    pictures: int
    reference: str | None = Field(description="whose pictures of the same seeds PSNR compares with")
    psnr_db_median: float | None
    psnr_db_min: float | None
    score: float | None = Field(description="share of pictures that the checker finds all right")


class Start(Record):
    """From nothing to a picture, each in a process of its own."""

    cold_s: Series = Field(description="process start to first picture; files are in the page cache")
    load_s: Series = Field(description="of it, loading, conversion included")
    convert_s: Series = Field(
        description="of it, converting or compiling the model ahead of the first picture"
    )
    warm_s: Series = Field(description="load to first picture, again in the same process")
    peak_rss_mb: float = Field(description="largest resident memory up to the first picture")
    peak_device_mb: float | None
    bytes_loaded: int = Field(description="of the files with weights and graphs")


class Painter(Record):
    """One way to paint, in one case."""

    name: str = Field(description="flux_trt/BACKEND for ours, else the peer's")
    device: str
    picture_ms: Series = Field(description="latency of one batch of pictures, prompts to pixels")
    pictures_per_second: float
    faster: Ratio | None
    quality: Quality
    stages_ms: dict[str, Series] | None = Field(description="each run of a graph; ours only, separate pass")
    step_ms: Series | None = Field(description="each run of the denoiser; the same as its stage")
    between_steps_ms: Series | None = Field(description="from the end of a step to the next one's start")
    outside_ms: Series | None = Field(description="of a batch's time, what no graph accounts for")
    start: Start | None
    joules_per_picture: float | None = Field(description="of the GPU, where its driver counts them")


class Case(Record):
    """Painters side by side in the same rounds, on the same prompts and seeds."""

    width: int
    height: int
    steps: int
    guidance: float | None
    batch: int
    text_tokens: int
    threads: int | None = Field(None, description="asked for; null: each painter's own choice")
    painters: list[Painter]


class Run(Record):
    """`run.json`."""

    kind: Literal["run"] = "run"
    schema_version: int = SCHEMA
    about: About
    warmup: int
    runs: int
    spread_limit: float
    noisy: bool = Field(description="a spread was wider than the limit and --allow-noise was given")
    retaken: int | None = Field(
        None, description="turns taken again because others slowed the machine meanwhile"
    )
    cases: list[Case]


class Count(Record):
    """What a stage does, counted from its graph."""

    matrix_flops: int = Field(description="of products, convolutions and attention; a multiply-add is 2")
    other_flops: int = Field(description="of everything else, about")
    weight_bytes: int
    io_bytes: int = Field(description="of the stage's inputs and outputs")
    unfused_bytes: int = Field(description="if every node read its inputs from memory and wrote its outputs")


class Ceilings(Record):
    """What the machine can do."""

    matrix_gflops: dict[str, float] = Field(description="measured rate of a large product, by dtype")
    measured_with: dict[str, str]
    copy_gbs: float = Field(description="GB read and written per second by a large copy")


class StageRoof(Record):
    """A stage under the machine's ceilings."""

    name: str
    count: Count
    dtype: str = Field(description="whose matrix rate is the ceiling")
    time_ms: float | None = Field(description="median of the profiled runs; null when it was not run")
    compute_ms: float = Field(description="all FLOPs at the matrix rate")
    memory_ms: float = Field(description="weights, inputs and outputs once at the copy bandwidth")
    bound: Literal["compute", "memory"]
    fraction: float | None = Field(description="of the nearer ceiling: the larger of the two, over time_ms")


class Roofline(Record):
    """`roofline.json`."""

    kind: Literal["roofline"] = "roofline"
    schema_version: int = SCHEMA
    about: About
    backend: str
    device: str
    width: int
    height: int
    steps: int
    batch: int
    ceilings: Ceilings
    noisy: bool = Field(description="a stage beat its matrix rate and --allow-noise was given")
    stages: list[StageRoof]


class Point(Record):
    """One place on a curve."""

    x: int
    ms: float = Field(description="median")
    spread: float
    runs: int


class Curve(Record):
    """Cost against one quantity, and the power of it that fits: time = c * x ** exponent."""

    over: str
    fixed: dict[str, int]
    points: list[Point]
    exponent: float | None = Field(description="least squares in log-log; null with fewer than 3 points")
    r2: float | None
    stopped: str | None = Field(description="why the curve ends before the last x asked for")


class Scaling(Record):
    """`scaling.json`."""

    kind: Literal["scaling"] = "scaling"
    schema_version: int = SCHEMA
    about: About
    backend: str
    device: str
    threads: int | None = Field(None, description="asked for; null: the backend's own choice")
    curves: list[Curve]


Result = Run | Roofline | Scaling
KINDS: dict[str, type[Run] | type[Roofline] | type[Scaling]] = {
    "run": Run,
    "roofline": Roofline,
    "scaling": Scaling,
}
R = TypeVar("R", Run, Roofline, Scaling)


def save(path: Path, found: Result) -> None:
    """Write a results file, whole or not at all."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as aside:
        aside.write(found.model_dump_json(indent=1) + "\n")
        aside.flush()
        os.fsync(aside.fileno())
    Path(aside.name).chmod(0o644)
    Path(aside.name).replace(path)


def load(path: Path, kind: type[R]) -> R:
    """Read a results file of the kind.

    Raises:
        BenchError: it is not there, or not such a file.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as fault:
        raise BenchError(f"cannot read {path} ({fault}); give a file that flux-bench has written") from None
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BenchError(
            f"{path} is no {kind.__name__.lower()} of flux-bench ({where}: {first['msg']}); measure it again"
        ) from None
