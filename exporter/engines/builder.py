"""The child process that builds one engine; TensorRT may take it down without harm to anything else.

Run by `child` as `python -m flux_trt.exporter.engines.builder FD`, with a job as one line of JSON on
standard input. What happens is told as JSON lines on the file descriptor FD; standard output and error are
TensorRT's own. The process ends when its parent does: standard input stays open as long as the parent lives.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict

from flux_trt.exporter.engines import attention
from flux_trt.exporter.engines.profile import shapes_of
from flux_trt.exporter.engines.report import Counts
from flux_trt.exporter.written import Written, write_whole
from flux_trt.runtime.bundle.engine import Recipe
from flux_trt.runtime.bundle.flavour import FLAVOURS
from flux_trt.runtime.bundle.manifest import File, Tensor
from flux_trt.runtime.errors import BuildError

TELL_EVERY = 0.2  # seconds between two progress lines of one phase


class Job(BaseModel):
    """What the child is to do."""

    model_config = ConfigDict(extra="forbid")

    graph: Path
    inputs: list[Tensor]
    recipe: Recipe
    plan: Path | None
    """Where to write the plan; None only reads the graph and says whether TensorRT accepts it."""
    counted: bool = False
    """Tell what the engine is made of, and keep no plan."""
    timing_cache: Path | None = None


def build(job: Job, tell: Any) -> File | None:
    """Do the job; the digest of the plan, or None where none is kept."""
    import polygraphy.backend.trt as pg

    recipe, flavour = job.recipe, FLAVOURS[job.recipe.flavour]
    trt, flags = flavour.module(), []
    if recipe.plugins:
        from flux_trt.plugins.qk_norm_rope import plugin

        plugin.register(trt)
        flags = [trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE]
    loaded = pg.network_from_onnx_path(str(job.graph), flags=flags, strongly_typed=True)
    builder, network, _parser = pg.set_decomposable_attentions(loaded)
    attention.quantise(trt, network)
    if job.plan is None and not job.counted:
        return None
    config = _config(job, flavour.cross_builds, _monitor(trt, tell))(builder, network)
    for flag in flavour.builder_flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if job.plan is None:
        tell(counts=_counts(trt, builder, network, config).model_dump())
        return None
    with Written(job.plan) as plan:
        writer = _writer(trt, plan)
        built = builder.build_serialized_network_to_stream(network, config, writer)
        if writer.fault is not None:
            raise writer.fault  # whatever TensorRT says: it swallows this
        if not built or not plan.nbytes:
            raise RuntimeError("TensorRT built no engine")
    if job.timing_cache:
        try:
            write_whole(job.timing_cache, bytes(config.get_timing_cache().serialize()))
        except BuildError as fault:
            tell(warning=str(fault))
    return plan.record


def _counts(trt: ModuleType, builder: Any, network: Any, config: Any) -> Counts:
    """Build, and read what is logged of it; the engine itself is let go."""
    from polygraphy.logger import G_LOGGER

    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), G_LOGGER.verbosity(G_LOGGER.EXTRA_VERBOSE):
            built = builder.build_serialized_network(network, config)
        if built is None:
            raise RuntimeError("TensorRT built no engine")
        return Counts.of(said.getvalue())
    except Exception:
        print("\n".join(line for line in said.getvalue().splitlines() if "[E]" in line))
        raise


def _config(job: Job, cross_builds: bool, monitor: Any) -> Any:
    import polygraphy.backend.tensorrt_rtx as pg_rtx
    import polygraphy.backend.trt as pg

    recipe, chosen = job.recipe, []
    for profile in recipe.profiles:
        ranges = pg.Profile()
        for tensor in job.inputs:
            ranges.add(tensor.name, *shapes_of(profile, tensor.dims))
        chosen.append(ranges)
    options: dict[str, Any] = {
        "profiles": chosen,
        "builder_optimization_level": recipe.opt_level,
        "weight_streaming": recipe.weight_streaming or None,
        "progress_monitor": monitor,
    }
    if job.timing_cache and job.timing_cache.exists():
        options["load_timing_cache"] = str(job.timing_cache)
    if not cross_builds:
        return pg.CreateConfig(**options)
    targets = [(int(major), int(minor)) for major, minor in (sm.split(".") for sm in recipe.capabilities)]
    return pg_rtx.CreateConfigRTX(compute_capabilities=targets, **options)


def _monitor(trt: ModuleType, tell: Any) -> Any:
    """An IProgressMonitor that tells of the outermost phase's steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.outer: dict[str, int] = {}
            self.told = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.outer[phase] = steps
                tell(progress=[phase, 0, steps])

        def step_complete(self, phase: str, step: int) -> bool:
            now = time.monotonic()
            if phase in self.outer and now - self.told > TELL_EVERY:
                self.told = now
                tell(progress=[phase, step + 1, self.outer[phase]])
            return True

        def phase_finish(self, phase: str) -> None:
            if steps := self.outer.pop(phase, None):
                tell(progress=[phase, steps, steps])

    return Monitor()


def _writer(trt: ModuleType, file: Written) -> Any:
    """An IStreamWriter into a file; TensorRT swallows faults and short counts, and `fault` keeps them."""

    class Writer(trt.IStreamWriter):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.fault: Exception | None = None

        def write(self, data: bytes) -> int:
            try:
                file.write(data)
            except Exception as fault:
                self.fault = self.fault or fault
                return -1
            return memoryview(data).nbytes

    return Writer()


def _die_with_parent() -> None:
    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(events: TextIO) -> None:
    """Read a job, do it, tell of it."""

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    job = Job.model_validate_json(sys.stdin.readline())
    _die_with_parent()
    try:
        done = build(job, tell)
    except OSError as fault:
        tell(unwritten=[fault.errno, fault.strerror, fault.filename])
        raise
    except Exception as fault:  # Polygraphy and TensorRT raise what they like
        tell(fault=" ".join(str(fault).split()))
        raise
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tell(plan=done.model_dump() if done else None, peak=peak)


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "w") as pipe:
        main(pipe)
