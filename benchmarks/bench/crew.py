"""The processes that paint, seen from the one that measures."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from flux_trt.bench.errors import BenchError
from flux_trt.bench.job import Job, Pictures


@dataclass(frozen=True)
class Painted:
    """A batch that a worker has painted."""

    ms: float
    at: int
    """`perf_counter_ns` when it was done; on Linux that clock is the same in all processes."""
    peak_rss_mb: float
    pictures: Pictures


class Worker:
    """One painter in a process; a context manager."""

    def __init__(self, name: str, job: Job) -> None:
        """Start the process; it has loaded nothing yet."""
        self.name = name
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self.started = time.perf_counter_ns()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "flux_trt.bench.worker", name, job.dumps()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
        )

    def load(self) -> dict[str, Any]:
        """Load the painter; how long that took, and what it is.

        Raises:
            BenchError: it cannot run here.
        """
        return self._ask({"do": "load"})

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Paint one batch."""
        found = self._ask({"do": "paint", "prompts": list(prompts), "seeds": list(seeds)})
        raw = zlib.decompress(base64.b64decode(found["pictures"]))
        pictures = np.frombuffer(raw, np.uint8).reshape(found["shape"])
        return Painted(found["ms"], found["at"], found["peak_rss_mb"], pictures)

    def profile(self, rounds: Sequence[tuple[Sequence[str], Sequence[int]]], warmup: int) -> dict[str, Any]:
        """`ours.profile`; the worker paints no more after it."""
        return self._ask({"do": "profile", "rounds": rounds, "warmup": warmup})

    def close(self) -> None:
        """End the process; closing twice is harmless."""
        if self._said.closed:
            return
        assert self._child.stdin
        assert self._child.stdout
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._said.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin
        assert self._child.stdout
        with contextlib.suppress(BrokenPipeError):  # it has died; what it said tells why
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            code = self._child.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines() or [""]
            raise BenchError(
                f"{self.name} died while it should {request['do']} (exit code {code}: {said[-1][:300]}); "
                f"leave it out"
            )
        answer: dict[str, Any] = json.loads(line)
        if "fault" in answer:
            raise BenchError(answer["fault"])
        return answer
