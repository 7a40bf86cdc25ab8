"""One painter in a process of its own: it reads requests from standard input and answers on standard output.

Every line is a JSON object. Processes keep the painters' memory, thread pools and compilers apart, and a
process's first picture is a cold start.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flux_trt.bench.errors import BenchError
from flux_trt.runtime.errors import FluxTrtError

if TYPE_CHECKING:
    from flux_trt.bench.job import Painter


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far.

    `ru_maxrss` would not do: on Linux a child's starts at its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(kilobytes) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


class Hands:
    """What the worker can be asked to do, by the `do` of a request."""

    def __init__(self, name: str, job: str) -> None:
        from flux_trt.bench.job import Job

        self._name, self._job = name, Job.loads(job)
        self._painter: Painter | None = None

    def load(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Load the painter, or load it again."""
        from flux_trt.bench.painters import make

        self._close()
        start = time.perf_counter()
        self._painter = make(self._name, self._job)
        return {
            "load_s": time.perf_counter() - start,
            "convert_s": self._painter.convert_s,
            "device": self._painter.device,
            "bytes_loaded": self._painter.bytes_loaded,
        }

    def paint(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Paint a batch; only that is timed."""
        if self._painter is None:
            raise BenchError("nothing is loaded to paint with; load first")
        start = time.perf_counter_ns()
        pictures = self._painter.paint(asked["prompts"], asked["seeds"])
        end = time.perf_counter_ns()
        packed = base64.b64encode(zlib.compress(pictures.tobytes(), 1)).decode()
        return {
            "ms": (end - start) / 1e6,
            "at": end,
            "peak_rss_mb": peak_rss_mb(),
            "shape": pictures.shape,
            "pictures": packed,
        }

    def profile(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Profile one of ours; the painter that was timed is gone after that."""
        from flux_trt.bench.job import OURS
        from flux_trt.bench.ours import profile

        self._close()
        return profile(self._name.removeprefix(OURS), self._job, asked["rounds"], asked["warmup"])

    def _close(self) -> None:
        if self._painter is not None:
            self._painter.close()
            self._painter = None


def main() -> None:
    """Answer until standard input ends."""
    warnings.simplefilter("ignore")
    # Libraries print; the answers have a channel of their own, and all else goes to standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        hands = Hands(*sys.argv[1:3])
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                answer = getattr(hands, asked["do"])(asked)
            except FluxTrtError as fault:
                answer = {"fault": str(fault)}
            channel.write(json.dumps(answer) + "\n")
            channel.flush()


if __name__ == "__main__":
    main()
