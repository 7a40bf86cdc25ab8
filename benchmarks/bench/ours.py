"""This project's pipeline as a painter, and its profile."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from flux_trt.bench.job import Job, Pictures, as_pictures
from flux_trt.bench.watch import Watched, clock
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import DENOISER, Flow
from flux_trt.runtime.pipeline import Pipeline


class Ours:
    """`Pipeline` on one backend."""

    convert_s = 0.0

    def __init__(self, backend: str, job: Job) -> None:
        self._job = job
        self._pipeline = Pipeline.load(job.bundle, backend, job.device, threads=job.threads)
        self.device = self._pipeline.backend.device
        self.bytes_loaded = bytes_loaded(self._pipeline.bundle)

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        """A batch of pictures."""
        return as_pictures(generate(self._pipeline, self._job, prompts, seeds))

    def close(self) -> None:
        """Free all graphs."""
        self._pipeline.close()


def generate(pipeline: Pipeline, job: Job, prompts: Sequence[str], seeds: Sequence[int]) -> list[object]:
    """The job's pictures, all at once."""
    images = pipeline.generate(
        prompts,
        size=(job.width, job.height),
        steps=job.steps,
        guidance=job.guidance,
        seed=seeds,
        batch=len(prompts),
    )
    return list(images)


def profile(
    backend: str, job: Job, rounds: Sequence[tuple[Sequence[str], Sequence[int]]], warmup: int
) -> dict[str, Any]:
    """Where the time goes: every graph run is marked, so this is not the pass that times pictures.

    On a GPU the loop is launched step by step here, not as one recorded graph.

    Returns:
        `stages`: milliseconds of each run, by stage; `between_steps`: of each gap between two denoiser runs;
        `outside`: of each batch, its time less that of all graphs; `peak_device_mb`.
    """
    bundle = Bundle.open(job.bundle, check=False)
    connected = connect(backend, job.device, bundle, check=False, threads=job.threads)
    free = connected.gpu.free_bytes() if connected.gpu else 0
    watched = Watched(connected, clock(connected))
    stages: dict[str, list[float]] = {}
    between: list[float] = []
    outside: list[float] = []
    with Pipeline(bundle, watched, record=False) as pipeline:
        for index, (prompts, seeds) in enumerate(rounds):
            watched.spans.clear()
            start = watched.clock.mark()
            generate(pipeline, job, prompts, seeds)
            end = watched.clock.mark()
            if index < warmup:
                continue
            took = [(span.stage, watched.clock.ms(span.start, span.end)) for span in watched.spans]
            for stage, ms in took:
                stages.setdefault(stage, []).append(ms)
            outside.append(watched.clock.ms(start, end) - sum(ms for _, ms in took))
            steps = [span for span in watched.spans if span.stage == DENOISER]
            between += [watched.clock.ms(one.end, two.start) for one, two in pairwise(steps)]
    least = watched.least_free
    peak = None if least is None else (free - least) / 1e6
    return {"stages": stages, "between_steps": between, "outside": outside, "peak_device_mb": peak}


def bytes_loaded(bundle: Bundle) -> int:
    """Of the graphs and weights of the stages that text-to-image loads, each file once."""
    stages = [bundle.manifest.stages[name] for name in Flow.of(bundle).stages]
    files = {path for stage in stages for path in (stage.graph, *stage.weights)}
    return sum((Path(bundle.root) / path).stat().st_size for path in files)
