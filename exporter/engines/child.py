"""The parent's side of the builder: run it, pass its progress on, and make an error of its last words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from flux_trt.exporter.engines.builder import Job
from flux_trt.exporter.engines.preflight import smaller
from flux_trt.exporter.engines.report import Counts
from flux_trt.runtime.bundle.engine import Recipe
from flux_trt.runtime.bundle.flavour import Flavour
from flux_trt.runtime.bundle.manifest import File
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.progress import Progress, silent

MODULE = "flux_trt.exporter.engines.builder"
LAST_LINES = 3  # of TensorRT's output, in an error
ERROR = re.compile(r"\[[EF]\]|\[TRT\].*\[[EF]\]|.*\b(ERROR|INTERNAL_ERROR)\b")

SHORT = ("bad_alloc", "out of memory", "OutOfMemory")
HEADING = re.compile(r":$|--- (Begin|End) node ---$")
"""What comes before a reason and around a node; it would leave no room for the reason."""


@dataclass(frozen=True)
class Built:
    """What came of a job."""

    plan: File | None
    """Size and SHA-256; None for a job that writes no plan."""
    peak: int
    """The child's largest resident memory in bytes, with the parts of the weights' files that it mapped."""
    warnings: tuple[str, ...] = ()
    counts: Counts | None = None
    """What the engine is made of, where that was asked for."""


def run(job: Job, flavour: Flavour, progress: Progress = silent) -> Built:
    """Do a job in a child process.

    Args:
        job: for the child.
        flavour: of the engine.
        progress: told (stage: phase, steps done, steps).

    Raises:
        BuildError: the child failed or died; with what TensorRT said last.
        OSError: the plan cannot be written.
    """
    stage = job.recipe.stage
    environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": flavour.polygraphy}
    reading, writing = os.pipe()
    fault, built, unwritten, counts, warnings = None, None, None, None, []
    with tempfile.TemporaryFile("w+", errors="replace") as said, os.fdopen(reading) as events:
        child = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(writing)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
            env=environment,
            text=True,
        )
        os.close(writing)
        assert child.stdin is not None
        try:
            child.stdin.write(job.model_dump_json() + "\n")
            child.stdin.flush()
            for event in map(json.loads, events):
                if "progress" in event:
                    phase, step, steps = event["progress"]
                    progress(f"{stage}: {phase}", step, steps)
                if "warning" in event:
                    warnings.append(event["warning"])
                counts = event.get("counts", counts)
                fault, unwritten = event.get("fault", fault), event.get("unwritten", unwritten)
                built = event if "plan" in event else built
        except BrokenPipeError:
            pass  # it has died before it could read; said below
        finally:
            if sys.exc_info()[0] is not None:
                child.kill()
            code = child.wait()
            child.stdin.close()
        if unwritten is not None:
            raise OSError(*unwritten)
        if code or built is None:
            said.seek(0)
            raise BuildError(_last_words(job.recipe, code, fault, said.read()))
    plan = File.model_validate(built["plan"]) if built["plan"] else None
    found = Counts.model_validate(counts) if counts else None
    return Built(plan, built["peak"], tuple(warnings), found)


def _last_words(recipe: Recipe, code: int, fault: str | None, said: str) -> str:
    how = fault or (
        f"the builder was killed by signal {-code}" if code < 0 else f"the builder exited with {code}"
    )
    lines = [line.strip() for line in said.splitlines() if line.strip() and "Traceback" not in line]
    reasons = [line for line in lines if ERROR.match(line)]
    reasons = [line for line in reasons if not HEADING.search(line)] or reasons
    chosen = reasons[:LAST_LINES] if fault else (reasons or lines)[-LAST_LINES:]
    words = " | ".join(dict.fromkeys(chosen))
    memory = f"free memory, or use {smaller(recipe.precision)}"
    short = code == -9 or any(each in words for each in SHORT)
    advice = memory if short else "report it, or build without this stage"
    return f"{recipe.stage}: {how}" + (f"; TensorRT's last words: {words}" if words else "") + f"; {advice}"
