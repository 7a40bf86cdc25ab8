"""`flux-bench roofline`: how near each stage comes to what the machine can do (Williams et al. 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from flux_trt.bench import schema
from flux_trt.bench.about import about
from flux_trt.bench.ceilings import ceilings
from flux_trt.bench.errors import BenchError, NoiseError
from flux_trt.bench.flops import count
from flux_trt.bench.job import Job
from flux_trt.bench.ours import profile
from flux_trt.bench.run import batch
from flux_trt.bench.schema import Ceilings, Count, Series, StageRoof
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import Flow
from flux_trt.runtime.bundle.manifest import Stage
from flux_trt.runtime.tasks.request import Request

PROMPT = "a picture"
PASSABLE = 1.05  # of a ceiling; both sides are measured


def measure(
    bundle: Bundle,
    backend: str,
    device: str,
    job: Job,
    *,
    runs: int,
    warmup: int,
    rate: str | None = None,
    allow_noise: bool = False,
) -> schema.Roofline:
    """Count, measure the machine, and profile the stages in between.

    Args:
        bundle: whose stages.
        backend: what runs them.
        device: "cpu" or "cuda", where that runs.
        job: size, steps and batch.
        runs: pictures that are profiled.
        warmup: pictures before that.
        rate: the dtype whose matrix rate is the ceiling. None: that of each stage's precision.
        allow_noise: report stages that are faster than the machine is said to be.

    Raises:
        NoiseError: such a stage, where that is not allowed.
        BenchError: no matrix rate of that dtype was measured here.
    """
    header = about(bundle)
    request = Request.of(
        bundle.manifest,
        [PROMPT] * job.batch,
        size=(job.width, job.height),
        steps=job.steps,
        guidance=job.guidance,
        batch=job.batch,
    )
    names = Flow.of(bundle).stages
    counts = {name: count(bundle, name, request) for name in names}
    found = ceilings(device)
    rounds = [batch([PROMPT], job.batch, index) for index in range(warmup + runs)]
    times = cast(dict[str, list[float]], profile(backend, job, rounds, warmup)["stages"])
    stages = [
        roof(name, counts[name], found, rate or _dtype(bundle.stage(name)), Series.of(times[name]).p50)
        for name in names
    ]
    noisy = _expect_below(stages, allow_noise)
    return schema.Roofline(
        about=header,
        backend=backend,
        device=device,
        width=job.width,
        height=job.height,
        steps=job.steps,
        batch=job.batch,
        ceilings=found,
        noisy=noisy,
        stages=stages,
    )


def roof(name: str, counted: Count, found: Ceilings, dtype: str, time_ms: float | None) -> StageRoof:
    """A stage under the ceilings.

    Raises:
        BenchError: no matrix rate of that dtype was measured.
    """
    if dtype not in found.matrix_gflops:
        there = ", ".join(found.matrix_gflops)
        raise BenchError(f"no matrix rate of {dtype} was measured here; give --rate, one of: {there}")
    flops = counted.matrix_flops + counted.other_flops
    compute = flops / found.matrix_gflops[dtype] / 1e6
    memory = (counted.weight_bytes + counted.io_bytes) / found.copy_gbs / 1e6
    return StageRoof(
        name=name,
        count=counted,
        dtype=dtype,
        time_ms=time_ms,
        compute_ms=round(compute, 6),
        memory_ms=round(memory, 6),
        bound="compute" if compute >= memory else "memory",
        fraction=round(max(compute, memory) / time_ms, 4) if time_ms else None,
    )


def _expect_below(stages: Sequence[StageRoof], allowed: bool) -> bool:
    """Whether a stage was faster than its matrix rate, where that is allowed; a cache explains no such thing.

    Raises:
        NoiseError: one was, and it is not.
    """
    for each in stages:
        above = bool(each.time_ms) and each.compute_ms > PASSABLE * (each.time_ms or 0)
        if above and not allowed:
            raise NoiseError(
                f"the stage {each.name} ran faster than the measured {each.dtype} matrix rate: the machine "
                f"was busy, or the backend computes in another type; quieten the machine, give --rate, or "
                f"report it as noisy with --allow-noise"
            )
        if above:
            return True
    return False


def _dtype(stage: Stage) -> str:
    """Whose matrix rate stands for a stage: of fp8, its base's, as no library here multiplies fp8."""
    return stage.base or stage.precision
