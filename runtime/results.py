"""The results of a file of jobs, beside it: what a next run goes on from. JSONL, one object a line:

{"line": 1, "job": "9f2c...", "ok": true, "path": "circle.png", "parameters": {...}}
{"line": 2, "job": "51aa...", "ok": false, "error": "line 2: unknown field 'sed'; ..."}
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from flux_trt.runtime import lock
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.jobs import BadLine, Job

_log = logging.getLogger(__name__)


class Results:
    """The results beside a jobs file, each on disk before the next job begins; a context manager.

    One process has it at a time, until it is closed.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or create the file; a last line that was cut off, as by a kill, is taken away.

        Args:
            path: of the results; the paths in it start at its folder.

        Raises:
            RequestError: a place that cannot be written, or another run that is at work there.
        """
        self._path = Path(path)
        self._outputs: dict[str, str | None] = {}
        self._owners: dict[Path, str] = {}
        try:
            # Without a buffer: what could not be written must not come with the next record.
            self._file = self._path.open("ab", buffering=0)
            self._lock()
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            self._file.truncate(len(whole))
        except OSError as fault:
            raise self._cannot(fault) from None
        for raw in whole.splitlines():
            self._remember(raw)

    def place(self, job: Job) -> Path | None:
        """Where an earlier run has put a job's picture; None if its last run failed, or there was none."""
        output = self._outputs.get(job.key)
        return self._path.parent / output if output else None

    def owner(self, place: Path) -> str | None:
        """The key of the job whose picture was the last to be put at a place."""
        return self._owners.get(place.resolve())

    def succeeded(self, job: Job, output: Path, parameters: Mapping[str, Any]) -> None:
        """Note a picture that has been written.

        Raises:
            RequestError: the results cannot be written; the file is as it was.
        """
        folder, place = self._path.parent.resolve(), output.resolve()
        path = str(place.relative_to(folder) if place.is_relative_to(folder) else place)
        self._add(
            {"line": job.line, "job": job.key, "ok": True, "path": path, "parameters": dict(parameters)}
        )

    def failed(self, job: Job | BadLine, error: str) -> None:
        """Note what went wrong. Errors are those of `succeeded`."""
        self._add({"line": job.line, "job": job.key, "ok": False, "error": error})

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        state = lock.hold(self._file.fileno())
        if state == "busy":
            self._file.close()
            raise RequestError(f"another run is at work on {self._path}; wait for it to end")
        if state == "unknown":
            _log.warning("%s cannot be locked on this disk; start no other run of the same jobs", self._path)

    def _add(self, record: Mapping[str, Any]) -> None:
        raw = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        before = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(raw) < len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as fault:
            self._file.truncate(before)
            raise self._cannot(fault) from None
        self._remember(raw)

    def _remember(self, raw: bytes) -> None:
        """The last result of a job counts; a line that is none of ours says nothing."""
        try:
            record = json.loads(raw)
            key = str(record["job"])
            output = str(record["path"]) if record["ok"] is True else None
            if output:  # first, since it refuses what is no path
                self._owners[(self._path.parent / output).resolve()] = key
            self._outputs[key] = output
        except (ValueError, KeyError, TypeError, RecursionError, OSError):
            return

    def _cannot(self, fault: OSError) -> RequestError:
        return RequestError(
            f"cannot write the results {self._path}: {fault.strerror or fault}; choose another place"
        )
