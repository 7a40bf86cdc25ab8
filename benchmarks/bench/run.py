"""`flux-bench run`: painters side by side, in turns, on the same prompts and seeds.

The passes are apart: pictures are timed with nothing watching; stages are profiled after that; cold starts
come last, when all files are in the page cache.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flux_trt.bench import schema
from flux_trt.bench.about import about
from flux_trt.bench.crew import Painted, Worker
from flux_trt.bench.energy import Meter
from flux_trt.bench.errors import NoiseError
from flux_trt.bench.job import OURS, Job
from flux_trt.bench.pace import Pace
from flux_trt.bench.quality import Check, judge
from flux_trt.bench.schema import Series
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.progress import Progress, silent

SPREAD_LIMIT = 0.10
REFERENCE = "diffusers"

Batch = tuple[list[str], list[int]]


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    jobs: Sequence[Job]
    """One per size."""
    painters: Sequence[str]
    prompts: Sequence[str]
    warmup: int
    runs: int
    starts: int
    """Cold starts of each painter; 0: none."""
    scored: int = 0
    """Pictures to judge at least; those that are more than the timed ones are painted untimed."""
    baseline: str | None = None
    """None: diffusers where it takes part, else the first painter."""
    allow_noise: bool = False
    patience: float = 300.0
    """Seconds to spend at most on moments in which the machine is slowed by others; see `Pace`."""


@dataclass
class Record:
    """What was measured of a painter so far."""

    device: str = "cpu"
    painted: list[Painted] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    profile: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, float]] = field(default_factory=list)


def measure(
    bundle: Bundle, plan: Plan, check: Check | None = None, progress: Progress = silent
) -> schema.Run:
    """All cases.

    Raises:
        NoiseError: whole pictures took times that spread too widely, and the plan does not allow that.
        BenchError: a painter that cannot run.
    """
    header, cases, noisy, pace = about(bundle), [], False, Pace(plan.patience)
    for job in plan.jobs:
        case, spread = _case(job, plan, pace, check, progress)
        noisy |= spread
        cases.append(case)
    return schema.Run(
        about=header,
        warmup=plan.warmup,
        runs=plan.runs,
        spread_limit=SPREAD_LIMIT,
        noisy=noisy,
        retaken=pace.retaken,
        cases=cases,
    )


def batch(prompts: Sequence[str], size: int, index: int) -> Batch:
    """The prompts and seeds of a round: prompts go round, every picture has a seed of its own."""
    numbers = range(index * size, (index + 1) * size)
    return [prompts[number % len(prompts)] for number in numbers], list(numbers)


def turn(names: Sequence[str], index: int) -> list[str]:
    """The order of a round: each painter comes first, second, ... in turn."""
    shift = index % len(names)
    return [*names[shift:], *names[:shift]]


def _case(
    job: Job, plan: Plan, pace: Pace, check: Check | None, progress: Progress
) -> tuple[schema.Case, bool]:
    """One size, and whether its times spread too widely, where that is allowed."""
    records = {name: Record() for name in plan.painters}
    rounds = [batch(plan.prompts, job.batch, index) for index in range(plan.runs)]
    more = max(plan.scored - plan.runs * job.batch, 0)
    extra = [batch(plan.prompts, job.batch, plan.runs + index) for index in range(-(-more // job.batch))]
    with ExitStack() as stack:
        crew = {name: stack.enter_context(Worker(name, job)) for name in plan.painters}
        for index, (name, worker) in enumerate(crew.items(), 1):
            records[name].device = worker.load()["device"]
            pace.full()
            progress("load", index, len(crew))
        _paint(crew, records, rounds, plan.warmup, pace, progress)
        took = {name: [each.ms for each in record.painted] for name, record in records.items()}
        noisy = _expect_quiet(f"{job.width}x{job.height}", took, plan.allow_noise)
        judged = {name: [each.pictures for each in record.painted] for name, record in records.items()}
        for index, (prompts, seeds) in enumerate(extra, 1):
            for name, worker in crew.items():
                judged[name].append(worker.paint(prompts, seeds).pictures)
            progress("score", index, len(extra))
        for name, worker in crew.items():
            if name.startswith(OURS):
                records[name].profile = worker.profile([*rounds[: plan.warmup], *rounds], plan.warmup)
    for index in range(plan.starts):
        for name in plan.painters:
            records[name].starts.append(_start(name, job, rounds[0]))
        progress("start", index + 1, plan.starts)
    baseline = plan.baseline or (REFERENCE if REFERENCE in records else plan.painters[0])
    said = [prompts for prompts, _ in (*rounds, *extra)]
    reference = (REFERENCE, judged[REFERENCE]) if REFERENCE in judged else None
    painters = [
        _painter(
            name,
            record,
            job.batch,
            None if name == baseline else (baseline, records[baseline]),
            judge(judged[name], said, reference if name != REFERENCE else None, check),
        )
        for name, record in records.items()
    ]
    case = schema.Case(
        width=job.width,
        height=job.height,
        steps=job.steps,
        guidance=job.guidance,
        batch=job.batch,
        text_tokens=job.text_tokens,
        threads=job.threads,
        painters=painters,
    )
    return case, noisy


def _paint(
    crew: dict[str, Worker],
    records: dict[str, Record],
    rounds: list[Batch],
    warmup: int,
    pace: Pace,
    progress: Progress,
) -> None:
    """The timed rounds, after those that are not counted."""
    meter = Meter()

    def turn_of(worker: Worker, prompts: list[str], seeds: list[int]) -> tuple[Painted, float | None]:
        worker.paint(prompts, seeds)  # wakes threads and caches after the others' turns
        before = meter.joules()
        painted = worker.paint(prompts, seeds)
        after = meter.joules()
        return painted, None if before is None or after is None else after - before

    for index in range(warmup + len(rounds)):
        batch = rounds[(index - warmup) % len(rounds)]
        for name in turn(list(crew), index):
            painted, joules = pace.hold(functools.partial(turn_of, crew[name], *batch))
            if index >= warmup:
                records[name].painted.append(painted)
                if joules is not None:
                    records[name].joules.append(joules)
        progress("time", index + 1, warmup + len(rounds))


def _start(name: str, job: Job, first: Batch) -> dict[str, float]:
    """A process of its own: cold to its first picture, then loaded again."""
    with Worker(name, job) as worker:
        loaded = worker.load()
        painted = worker.paint(*first)
        again = worker.load()
        warm = worker.paint(*first)
    return {
        "cold_s": (painted.at - worker.started) / 1e9,
        "load_s": loaded["load_s"],
        "convert_s": loaded["convert_s"],
        "warm_s": again["load_s"] + warm.ms / 1e3,
        "peak_rss_mb": painted.peak_rss_mb,
        "bytes_loaded": loaded["bytes_loaded"],
    }


def _painter(
    name: str,
    record: Record,
    pictures: int,
    baseline: tuple[str, Record] | None,
    quality: schema.Quality,
) -> schema.Painter:
    took = Series.of([each.ms for each in record.painted])
    found, stages = record.profile, record.profile.get("stages")
    return schema.Painter(
        name=name,
        device=record.device,
        picture_ms=took,
        pictures_per_second=round(pictures / took.p50 * 1e3, 4),
        faster=_ratio(baseline[0], baseline[1], record) if baseline else None,
        quality=quality,
        stages_ms={stage: Series.of(ms) for stage, ms in stages.items()} if stages else None,
        step_ms=Series.of(stages["denoiser"]) if stages else None,
        between_steps_ms=Series.of(found["between_steps"]) if found.get("between_steps") else None,
        outside_ms=Series.of(found["outside"]) if found else None,
        start=_starts(record) if record.starts else None,
        joules_per_picture=round(float(np.median(record.joules)) / pictures, 3) if record.joules else None,
    )


def _ratio(name: str, baseline: Record, own: Record) -> schema.Ratio:
    pairs = zip(baseline.painted, own.painted, strict=True)
    low, middle, high = np.percentile([theirs.ms / ours.ms for theirs, ours in pairs], [25, 50, 75])
    return schema.Ratio(
        baseline=name, median=round(float(middle), 4), p25=round(float(low), 4), p75=round(float(high), 4)
    )


def _starts(record: Record) -> schema.Start:
    found = {key: [start[key] for start in record.starts] for key in record.starts[0]}
    device = record.profile.get("peak_device_mb")
    return schema.Start(
        **{key: Series.of(found[key]) for key in ("cold_s", "load_s", "convert_s", "warm_s")},
        peak_rss_mb=round(max(found["peak_rss_mb"]), 1),
        peak_device_mb=None if device is None else round(device, 1),
        bytes_loaded=int(found["bytes_loaded"][0]),
    )


def _expect_quiet(size: str, took: Mapping[str, Sequence[float]], allowed: bool) -> bool:
    """Whether times spread too widely, where that is allowed. Asked before anything else is measured.

    Raises:
        NoiseError: they do, and it is not.
    """
    spreads = {name: Series.of(ms).spread for name, ms in took.items()}
    widest = max(spreads, key=lambda name: spreads[name])
    if spreads[widest] > SPREAD_LIMIT and not allowed:
        raise NoiseError(
            f"whole pictures of {widest} at {size} spread by {spreads[widest]:.0%} "
            f"(interquartile range over median; the limit is {SPREAD_LIMIT:.0%}): not reported; "
            f"quieten the machine, or report it as noisy with --allow-noise"
        )
    return spreads[widest] > SPREAD_LIMIT
