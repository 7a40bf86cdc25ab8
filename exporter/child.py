"""The parent's side of the builder: run it, pass its progress on, and make an error of its last words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from flux_trt.exporter.builder import Job
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.flavour import Flavour
from flux_trt.runtime.manifest import File
from flux_trt.runtime.progress import Progress, silent

MODULE = "flux_trt.exporter.builder"
LAST_LINES = 3  # of TensorRT's output, in an error


def run(job: Job, flavour: Flavour, progress: Progress = silent) -> File | None:
    """Do a job in a child process.

    Args:
        job: for the child.
        flavour: of the engine.
        progress: told (stage: phase, steps done, steps).

    Returns:
        Size and SHA-256 of the plan, or None for a job without one.

    Raises:
        BuildError: the child failed or died; with what TensorRT said last.
    """
    stage = job.recipe.stage
    environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": flavour.polygraphy}
    reading, writing = os.pipe()
    fault, done = None, None
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
                fault = event.get("fault", fault)
                done = event.get("plan", done)
        except BrokenPipeError:
            pass  # it has died before it could read; said below
        finally:
            if sys.exc_info()[0] is not None:
                child.kill()
            code = child.wait()
            child.stdin.close()
        if code:
            said.seek(0)
            raise BuildError(_last_words(stage, code, fault, said.read()))
    return File.model_validate(done) if done else None


def _last_words(stage: str, code: int, fault: str | None, said: str) -> str:
    how = fault or (
        f"the builder was killed by signal {-code}" if code < 0 else f"the builder exited with {code}"
    )
    lines = [line.strip() for line in said.splitlines() if line.strip() and "Traceback" not in line]
    words = " | ".join(lines[-LAST_LINES:]) if not fault else ""
    advice = "free memory or use --precision fp8" if code == -9 else "report it, or build without this stage"
    return f"{stage}: {how}" + (f"; TensorRT's last words: {words}" if words else "") + f"; {advice}"
