"""`flux-bench serve` and `flux-bench rows`: what batching by steps is worth, and how many rows pay."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flux_trt.bench.options import BACKEND, BUNDLE, DEVICE, OUT, Sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flux_trt.bench.load import Played, Way
    from flux_trt.runtime.backends.protocols import Device
    from flux_trt.runtime.pipeline import Pipeline


class Numbers(click.ParamType):
    """Numbers with commas between them."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split "4,8"."""
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(float(each) for each in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas, such as 4,8", param, ctx)
        if min(found) <= 0:
            self.fail(f"{value!r} has a number that is not above 0", param, ctx)
        return found


ONE, REQUESTS, STEPS = "one by one", "by requests", "by steps"
BURST = 0.0  # the load that stands for all at once
SIZES = click.option(
    "--sizes", type=Sizes(), metavar="WxH,...", help="Widths and heights.  [default: the bundle's]"
)


@click.command(short_help="Time a random load: one by one, batches of requests, shared steps.")
@BUNDLE
@BACKEND
@DEVICE
@SIZES
@click.option("--steps", type=Numbers(), default=(4, 8, 12, 20), help="Drawn evenly.  [default: 4,8,12,20]")
@click.option(
    "--loads",
    type=Numbers(),
    default=(0.7, 1.5),
    help="Shares of what one by one can do, at which requests come.  [default: 0.7,1.5]",
)
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=12, show_default=True, help="That each stream lasts."
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--most", type=click.IntRange(min=1), default=8, show_default=True, help="Rows of a batch.")
@click.option(
    "--as-device",
    type=Numbers(),
    metavar="FIRST,MORE",
    help="Seconds that a run of the denoiser takes with one row, and for each row more, as on another "
    "device: it waits until they are over.",
)
@OUT
def serve(
    bundle: Path,
    backend: str,
    device: Device,
    sizes: list[tuple[int, int]] | None,
    steps: tuple[float, ...],
    loads: tuple[float, ...],
    seconds: float,
    rounds: int,
    most: int,
    as_device: tuple[float, ...] | None,
    out: Path,
) -> None:
    """Let requests for BUNDLE come at random moments, the same ones for each way to paint them, in turns."""
    from flux_trt.bench.load import BySteps, Together, arrivals, burst, pace, play, stand_in
    from flux_trt.runtime.pipeline import Pipeline

    with Pipeline.load(bundle, backend, device) as pipeline:
        if as_device is not None:
            if len(as_device) != 2:
                raise click.BadParameter("give two numbers, FIRST,MORE", param_hint="--as-device")
            stand_in(pipeline, *as_device)
        asked = sizes or [_default(pipeline)]
        whole = tuple(int(each) for each in steps)
        ways: dict[str, Way] = {
            ONE: Together(pipeline, 1),
            REQUESTS: Together(pipeline, most),
            STEPS: BySteps(pipeline, most),
        }
        sample = arrivals(pipeline, 50, 4, whole, asked, 0)
        for way in ways.values():
            play(way, sample[:20])  # not counted
        together = burst(sample, max(most, round(pace(pipeline, sample, seconds / 8) * seconds / 3)))
        found: dict[float, dict[str, list[Played]]] = {
            load: {name: [] for name in ways} for load in (BURST, *loads)
        }
        for number in range(rounds):
            first = number % len(ways)
            order = [*ways][first:] + [*ways][:first]  # who goes first changes, so that no drift is one way's
            for load in found:
                alone = found[BURST][ONE][-1:]
                rate = sum(len(each.seconds) / each.whole for each in alone)
                stream = (
                    together
                    if load == BURST
                    else arrivals(pipeline, load * rate, seconds, whole, asked, number + 1)
                )
                for name in order:
                    found[load][name].append(play(ways[name], stream))
                    said = "all at once" if load == BURST else f"{load:g}"
                    click.echo(f"{said} {name}: {_line(found[load][name][-1:])}", err=True)
        whole_burst = found.pop(BURST)
        result = {
            "capacities_per_second": {
                name: summary(played)["per_second"] for name, played in whole_burst.items()
            },
            "steps": whole,
            "sizes": asked,
            "most": most,
            "seconds": seconds,
            "rounds": rounds,
            "as_device": as_device,
            "loads": [
                {"load": load, "ways": (told := {name: summary(one) for name, one in played.items()})}
                | ratios(told)
                for load, played in found.items()
            ],
        }
        _write(pipeline, out / "serve.json", result)


@click.command(short_help="How many rows of a step pay, by size.")
@BUNDLE
@BACKEND
@DEVICE
@SIZES
@click.option("--most", type=click.IntRange(min=1), default=16, show_default=True, help="Rows to try.")
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True, help="Steps of each.")
@OUT
def rows(
    bundle: Path,
    backend: str,
    device: Device,
    sizes: list[tuple[int, int]] | None,
    most: int,
    runs: int,
    out: Path,
) -> None:
    """Time steps of BUNDLE with 1, 2, 4, ... rows: a table for `flux-serve --rows`."""
    from flux_trt.runtime.errors import GpuMemoryError
    from flux_trt.runtime.pipeline import Pipeline
    from flux_trt.serving.rows import worth

    with Pipeline.load(bundle, backend, device) as pipeline:
        table: dict[int, int] = {}
        times: dict[str, dict[int, float]] = {}
        for size in sorted(sizes or [_default(pipeline)], key=lambda each: each[0] * each[1]):
            taken: dict[int, float] = {}
            count = 1
            while count <= most:
                try:
                    taken[count] = step_seconds(pipeline, size, count, runs)
                except GpuMemoryError:
                    break
                count *= 2
            table[size[0] * size[1]] = worth(taken)
            times[f"{size[0]}x{size[1]}"] = {count: round(each, 6) for count, each in taken.items()}
            click.echo(f"{size[0]}x{size[1]}: {worth(taken)} rows", err=True)
        _write(pipeline, out / "rows.json", {"rows": table, "step_seconds": times})


def step_seconds(pipeline: Pipeline, size: tuple[int, int], count: int, runs: int) -> float:
    """The median seconds of a step of so many rows."""
    from flux_trt.runtime.stepwise import Stepwise
    from flux_trt.runtime.tasks.request import Request

    steps = Stepwise(pipeline)
    request = Request.of(pipeline.bundle.manifest, "", size=size, steps=runs + 3, count=count)
    painting = steps.prepare(request)
    courses = [steps.begin(painting, index) for index in range(count)]
    taken = []
    for _ in range(runs + 3):
        start = time.perf_counter()
        if faults := steps.step(courses):
            raise next(iter(faults.values()))
        if pipeline.backend.gpu:
            pipeline.backend.gpu.synchronize()
        taken.append(time.perf_counter() - start)
    steps.close()
    return statistics.median(taken[3:])


def summary(played: Sequence[Played]) -> dict[str, Any]:
    """The numbers of all rounds of one way: seconds of a picture, and pictures a second."""
    seconds = sorted(each for one in played for each in one.seconds)
    few = min(step for one in played for step in one.steps)
    short = [s for one in played for s, step in zip(one.seconds, one.steps, strict=True) if step == few]
    return {
        "pictures": len(seconds),
        "mean_s": round(statistics.fmean(seconds), 4),
        "median_s": round(statistics.median(seconds), 4),
        "p95_s": round(seconds[int(0.95 * (len(seconds) - 1))], 4),
        "fewest_steps_median_s": round(statistics.median(short), 4),
        "per_second": round(len(seconds) / sum(one.whole for one in played), 3),
    }


def ratios(ways: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What steps are worth beside batches of requests, within one run: less, and more, is better."""
    steps, requests = ways[STEPS], ways[REQUESTS]
    return {
        "mean_to_p95_of_requests": round(steps["mean_s"] / requests["p95_s"], 3),
        "per_second_to_requests": round(steps["per_second"] / requests["per_second"], 3),
    }


def _line(played: Sequence[Played]) -> str:
    found = summary(played)
    return (
        f"{found['pictures']} pictures, mean {found['mean_s']:.2f} s, p95 {found['p95_s']:.2f} s, "
        f"{found['per_second']:.1f} a second"
    )


def _default(pipeline: Pipeline) -> tuple[int, int]:
    defaults = pipeline.bundle.manifest.defaults
    return defaults.width, defaults.height


def _write(pipeline: Pipeline, path: Path, result: dict[str, Any]) -> None:
    from flux_trt.bench.about import about

    path.parent.mkdir(parents=True, exist_ok=True)
    head = about(pipeline.bundle).model_dump(mode="json")
    path.write_text(json.dumps({"about": head, **result}, indent=1) + "\n", encoding="utf-8")
    click.echo(str(path))
