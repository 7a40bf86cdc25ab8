"""`flux-bench compare`: whether B is slower, or paints worse, than A.

A time is a regression when the ratio of medians, B over A, is above the bound and its bootstrapped 99 %
interval lies above 1: large enough to matter, and not by chance. Resampling is seeded, so a verdict repeats.
Measured against a painter of the same run, a time is its share of that one's in the same round: this holds
from machine to machine, about.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flux_trt.bench.errors import BenchError
from flux_trt.bench.schema import Case, Hardware, Painter, Quality, Run, Series

RESAMPLES, CONFIDENCE, SEED = 4000, 0.99, 0
CLEAN_DB, DROP_DB = 60.0, 1.0
"""Above 60 dB two pictures differ by no level that can be seen; a drop below that counts from 1 dB on."""


@dataclass(frozen=True)
class Verdict:
    """One comparison."""

    case: str
    painter: str
    what: str
    a: float
    b: float
    ratio: float | None
    """Of times, B over A."""
    interval: tuple[float, float] | None
    regression: bool


def compare(
    a: Run, b: Run, bound: float, anyway: bool = False, relative_to: str | None = None
) -> list[Verdict]:
    """B against A, wherever both have the same case and painter; `relative_to` names a painter of both.

    Raises:
        BenchError: measured on different machines, bundles or cases (unless `anyway`), nothing in common,
            or no such painter.
    """
    if not anyway:
        _expect_alike(a, b)
    if relative_to:
        a, b = (_relative(run, relative_to) for run in (a, b))
    found = list(_verdicts(a, b, bound, "x " + relative_to if relative_to else "ms"))
    if not found:
        raise BenchError("the two runs have no case and painter in common; measure the same ones")
    return found


def ratio_of_medians(a: Sequence[float], b: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """median(b) / median(a), and its percentile-bootstrap interval (Efron 1979)."""
    rng = np.random.default_rng(SEED)
    medians = [np.median(rng.choice(np.asarray(side), (RESAMPLES, len(side))), axis=1) for side in (a, b)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians[1] / medians[0], [tail, 1 - tail])
    return float(np.median(b) / np.median(a)), (float(low), float(high))


def _relative(run: Run, name: str) -> Run:
    """The same run, every picture's time as a share of what `name` took in the same round, and no steps.

    Raises:
        BenchError: a case without `name`, or with nobody beside it.
    """
    return run.model_copy(update={"cases": [_relative_case(case, name) for case in run.cases]})


def _relative_case(case: Case, name: str) -> Case:
    others = [painter for painter in case.painters if painter.name != name]
    if not others or len(others) == len(case.painters):
        raise BenchError(f"{_case(case)} was not measured with {name} and another; add it with --peer")
    (base,) = (painter.picture_ms.samples for painter in case.painters if painter.name == name)
    return case.model_copy(update={"painters": [_share(each, base) for each in others]})


def _share(painter: Painter, base: Sequence[float]) -> Painter:
    shares = [own / theirs for own, theirs in zip(painter.picture_ms.samples, base, strict=True)]
    return painter.model_copy(update={"picture_ms": Series.of(shares), "step_ms": None})


def _verdicts(a: Run, b: Run, bound: float, unit: str) -> Iterator[Verdict]:
    old = {(_case(case), painter.name): painter for case in a.cases for painter in case.painters}
    for case in b.cases:
        for new in case.painters:
            before = old.get((_case(case), new.name))
            if before is not None:
                yield from _times(_case(case), before, new, bound, unit)
                yield from _quality(_case(case), new.name, before.quality, new.quality)


def _times(case: str, a: Painter, b: Painter, bound: float, unit: str) -> Iterator[Verdict]:
    for what, old, new in (("picture", a.picture_ms, b.picture_ms), ("step", a.step_ms, b.step_ms)):
        if old and new:
            ratio, interval = ratio_of_medians(old.samples, new.samples)
            worse = ratio > bound and interval[0] > 1
            yield Verdict(case, a.name, f"{what}, {unit}", old.p50, new.p50, ratio, interval, worse)


def _quality(case: str, painter: str, a: Quality, b: Quality) -> Iterator[Verdict]:
    if a.score is not None and b.score is not None:
        # Two shares of the same pictures: a drop of more than two standard errors of their difference.
        error = math.sqrt(sum(each.score * (1 - each.score) / each.pictures for each in (a, b) if each.score))
        worse = a.score - b.score > 2 * error
        yield Verdict(case, painter, "score", a.score, b.score, None, None, worse)
    if a.psnr_db_median is not None and b.psnr_db_median is not None:
        drop = min(a.psnr_db_median, CLEAN_DB) - min(b.psnr_db_median, CLEAN_DB)
        yield Verdict(
            case, painter, "PSNR, dB", a.psnr_db_median, b.psnr_db_median, None, None, drop > DROP_DB
        )


def _case(case: Case) -> str:
    guidance = "" if case.guidance is None else f", guidance {case.guidance:g}"
    threads = "" if case.threads is None else f", {case.threads} threads"
    return f"{case.width}x{case.height}, {case.steps} steps, batch {case.batch}{guidance}{threads}"


def _machine(found: Hardware) -> str:
    gpu = f"{found.gpu}, driver {found.driver}, {found.power_limit_w} W" if found.gpu else "no GPU"
    return f"{found.cpu}, {found.cores} cores, {found.memory_gb:g} GB, {gpu}"


def _expect_alike(a: Run, b: Run) -> None:
    differ = {
        "hardware": (_machine(a.about.hardware), _machine(b.about.hardware)),
        "bundle": (a.about.bundle.digest[:12], b.about.bundle.digest[:12]),
        "cases": ([_case(case) for case in a.cases], [_case(case) for case in b.cases]),
    }
    for what, (one, two) in differ.items():
        if one != two:
            raise BenchError(
                f"the runs have different {what} ({one} and {two}); measure both alike, or give --anyway"
            )
