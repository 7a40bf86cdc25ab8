"""`flux-bench scaling`: what a denoiser step costs as its sequence, batch and text grow, and the steps.

The denoiser's graph is run alone, on random numbers: its time depends on shapes only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from flux_trt.bench import schema
from flux_trt.bench.about import about
from flux_trt.bench.schema import Curve, Point, Series
from flux_trt.bench.watch import clock
from flux_trt.runtime.backends.memory import shape
from flux_trt.runtime.backends.protocols import Backend, Buffer, Graph
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.manifest import StageName
from flux_trt.runtime.errors import BackendError
from flux_trt.runtime.progress import Progress, silent

SWEEPS: dict[str, tuple[int, ...]] = {
    "tokens": (256, 512, 1024, 2048, 4096, 8192, 16384),
    "batch": (1, 2, 4, 8),
    "text": (32, 64, 128, 256, 512),
    "steps": (1, 2, 4, 8, 16, 32),
    "references": (0, 1, 2, 3, 4),
}
"""What grows, and through what. A reference picture adds as many tokens as the picture has."""
BASE = {"tokens": 256, "batch": 1, "text": 32, "steps": 1, "references": 0}
RUNS, LEAST = 5, 3  # runs a point; points a fit needs
MEMORY_SHARE = 0.5  # of what is free, at most, for the scores of one attention


@dataclass
class Lab:
    """The two graphs of the loop, loaded alone."""

    bundle: Bundle
    backend: Backend
    seconds: float
    """For each curve."""
    graphs: dict[StageName, Graph] = field(default_factory=dict)

    def graph(self, name: StageName) -> Graph:
        """The stage's graph, loaded when it is first asked for."""
        if name not in self.graphs:
            stage = self.bundle.stage(name)
            self.graphs[name] = self.backend.load(self.bundle.root / stage.graph, name, stage)
        return self.graphs[name]

    def close(self) -> None:
        """Free the graphs."""
        for graph in self.graphs.values():
            graph.close()

    def inputs(self, name: StageName, sizes: dict[str, int]) -> dict[str, Buffer]:
        """Random inputs of a stage, uploaded."""
        rng = np.random.default_rng(0)
        found = {}
        for tensor in self.bundle.stage(name).inputs:
            values = rng.standard_normal(shape(tensor, sizes)).astype(tensor.dtype)
            found[tensor.name] = self.backend.upload(values)
        return found


def measure(
    bundle: Bundle,
    backend: Backend,
    backend_name: str,
    sweeps: Sequence[str],
    seconds: float,
    progress: Progress = silent,
    threads: int | None = None,
) -> schema.Scaling:
    """A curve for each of `sweeps`, names of `SWEEPS`; a curve ends when its `seconds` are spent.

    `threads` is what the backend was made with.
    """
    header, lab, curves = about(bundle), Lab(bundle, backend, seconds), []
    try:
        for index, over in enumerate(sweeps, 1):
            curves.append(_curve(lab, over))
            progress("sweep", index, len(sweeps))
    finally:
        lab.close()
    return schema.Scaling(
        about=header, backend=backend_name, device=backend.device, threads=threads, curves=curves
    )


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """(exponent, R squared) of y = c * x ** exponent through points, by least squares of the logarithms."""
    usable = [(x, y) for x, y in points if x > 0]
    if len(usable) < LEAST:
        return None
    x, y = np.log(np.array(usable)).T
    slope, offset = np.polyfit(x, y, 1)
    apart = float(np.sum((y - y.mean()) ** 2))
    left = float(np.sum((y - slope * x - offset) ** 2))
    return round(float(slope), 3), round(1 - left / apart, 4) if apart else 1.0


def _curve(lab: Lab, over: str) -> Curve:
    points: list[Point] = []
    stopped, deadline = None, time.monotonic() + lab.seconds
    for x in SWEEPS[over]:
        sizes = _sizes(BASE | {over: x})
        left = deadline - time.monotonic()
        if stopped := _cannot(lab, over, sizes, x, points, left):
            break
        try:
            points.append(_point(lab, over, x, sizes))
        except BackendError as fault:
            stopped = f"{over} {x}: {fault}"
            break
    # A curve that starts at 0 (references) is fitted over the tokens, which is what it changes.
    fitted = fit(
        [(_sizes(BASE | {over: p.x})["tokens"] if over == "references" else p.x, p.ms) for p in points]
    )
    fixed = {name: value for name, value in BASE.items() if name != over}
    exponent, r2 = fitted or (None, None)
    return Curve(over=over, fixed=fixed, points=points, exponent=exponent, r2=r2, stopped=stopped)


def _sizes(at: dict[str, int]) -> dict[str, int]:
    tokens = at["tokens"] * (1 + at["references"])
    known = {name: at[name] for name in ("batch", "text", "steps")}
    return {**known, "tokens": tokens, "sequence": tokens + at["text"]}


def _cannot(
    lab: Lab, over: str, sizes: dict[str, int], x: int, points: list[Point], left: float
) -> str | None:
    """Why the next point is left out: no time for it, or no memory."""
    if points:
        last = points[-1]
        growth = _work(sizes) / _work(_sizes(BASE | {over: last.x}))
        needs = last.ms / 1e3 * growth * 2  # a run that is not counted, and one that is
        if needs > left:
            return f"the next point, {x}, would take about {needs:.0f} s of the {max(left, 0):.0f} s left"
    need = attention_bytes(lab.bundle, sizes)
    free = lab.backend.gpu.free_bytes() if lab.backend.gpu else _available()
    if need > MEMORY_SHARE * free:
        return f"at {x} an attention's scores would take {need / 1e9:.1f} GB of {free / 1e9:.1f} GB free"
    return None


def _work(sizes: dict[str, int]) -> int:
    """What a point costs at most, but for a factor: attention is quadratic."""
    return sizes["batch"] * sizes["steps"] * sizes["sequence"] ** 2


def attention_bytes(bundle: Bundle, sizes: dict[str, int]) -> int:
    """Of the scores of one attention and their softmax, where a backend writes them out in float32."""
    model, stage = bundle.manifest.model, bundle.stage("denoiser")
    width = next(tensor.dims[-1] for tensor in stage.inputs if tensor.name == "context")
    heads = int(width) // sum(model.positions.axes)
    return 2 * 4 * sizes["batch"] * heads * sizes["sequence"] ** 2


def _point(lab: Lab, over: str, x: int, sizes: dict[str, int]) -> Point:
    work = _loop(lab, sizes) if over == "steps" else _step(lab, sizes)
    times = clock(lab.backend)
    work()
    found: list[float] = []
    began = time.monotonic()
    while len(found) < RUNS and (not found or time.monotonic() - began < lab.seconds / 4):
        start = times.mark()
        work()
        found.append(times.ms(start, times.mark()))
    took = Series.of(found)
    return Point(x=x, ms=took.p50, spread=took.spread, runs=took.n)


def _step(lab: Lab, sizes: dict[str, int]) -> Callable[[], object]:
    """One run of the denoiser."""
    graph, inputs = lab.graph("denoiser"), lab.inputs("denoiser", sizes)
    rows = shape(lab.bundle.stage("denoiser").outputs[0], sizes)
    into = {"next_latents": lab.backend.upload(np.zeros(rows, np.float32))}
    return lambda: graph.run(inputs, into)


def _loop(lab: Lab, sizes: dict[str, int]) -> Callable[[], object]:
    """The conditioner for all steps, and the denoiser as often."""
    conditioner, inputs = lab.graph("conditioner"), lab.inputs("conditioner", sizes)
    step = _step(lab, sizes)

    def run() -> None:
        conditioner.run(inputs)
        for _ in range(sizes["steps"]):
            step()

    return run


def _available() -> int:
    """Bytes of memory that a new allocation could take."""
    with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(kilobytes) * 1024
