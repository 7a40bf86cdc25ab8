"""Timing in turns: every way runs once per round, so that a slow moment of the machine hits them all."""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flux_trt.bench.pace import Pace

Seconds = dict[str, list[float]]


def take_turns(
    ways: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1, patience: float = 120.0
) -> Seconds:
    """Seconds of every way in every round; the order turns round, the warm-up is not counted.

    Turns that others on the machine have slowed are taken again, for at most `patience` seconds in all.
    """
    found: Seconds = {name: [] for name in ways}
    pace = Pace(patience)
    for index in range(warmup + rounds):
        names = list(ways) if index % 2 else list(reversed(ways))
        for name in names:
            seconds = pace.hold(functools.partial(_timed, ways[name]))
            if index >= warmup:
                found[name].append(seconds)
        told = ", ".join(f"{name} {times[-1]:.3f}" for name, times in found.items() if times)
        print(f"round {index}: {told or 'warm-up'}", file=sys.stderr, flush=True)
    print(f"{pace.retaken} turns taken again", file=sys.stderr, flush=True)
    return found


def _timed(way: Callable[[], Any]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest, in seconds."""
    figures = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: round(value, 5) for name, value in figures.items()}


def times_as_fast(seconds: Seconds, name: str, other: str) -> float:
    """How many times as fast `name` is as `other`: the median over rounds of the ratio within a round."""
    ratios = [theirs / ours for ours, theirs in zip(seconds[name], seconds[other], strict=True)]
    return round(statistics.median(ratios), 3)
