"""One part: its process, its limit, and what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import xml.etree.ElementTree
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from on_gpu.parts import Part

TAIL = 3000  # characters of what a part that failed has printed
STATES = {"failure": "failed", "error": "failed", "skipped": "skipped"}
"""By what a report has of a test."""
GRACE = 5.0
"""Seconds between asking a part to end and ending it."""


def run(part: Part, words: Mapping[str, str], seconds: float, root: Path) -> dict[str, Any]:
    """Run it, and say how it went.

    Args:
        part: what to run.
        words: what stands in its command's braces.
        seconds: it is stopped after so long.
        root: the repository.

    Returns:
        `name`, `state` ("passed", "failed", "stopped"), `seconds`, and where they are known `tests` (each
        with `name`, `state`, `why`) and `output` (the end of what was printed).
    """
    command = [word.format(**words, seconds=int(seconds)) for word in part.command]
    code, printed, took = ended(command, seconds, root)
    found: dict[str, Any] = {"name": part.name, "shows": list(part.shows), "seconds": round(took, 1)}
    found["state"] = "stopped" if code is None else "failed" if code else "passed"
    report = Path(words["work"]) / "junit.xml"
    if part.tests and report.is_file():
        found["tests"] = [*tests(report)]
        report.unlink()
        if code == 0 and not any(each["state"] == "passed" for each in found["tests"]):
            found["state"] = "skipped"
    if found["state"] in ("failed", "stopped"):
        found["output"] = printed[-TAIL:]
    return found


def ended(command: list[str], seconds: float, root: Path) -> tuple[int | None, str, float]:
    """Exit code (None: stopped), what it printed, and its seconds. Nothing of it is left running."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    started, log = time.monotonic(), root / "out" / "gpu" / "part.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, cwd=root, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
    return code, log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - started


def _end(child: subprocess.Popen[bytes]) -> None:
    """End its whole session, politely first."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def tests(report: Path) -> Iterable[dict[str, str]]:
    """Of pytest's report: each test, how it went, and why not."""
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        worst = next((each for each in case if each.tag in STATES), None)
        state = "passed" if worst is None else STATES[worst.tag]
        why = "" if worst is None else (worst.get("message") or "").strip()
        yield {"name": case.get("name") or "", "state": state, "why": why[:300]}


def without_places(text: str, root: Path) -> str:
    """Without the folders of this machine: the repository's is ".", the user's "~"."""
    return text.replace(str(root), ".").replace(str(Path.home()), "~")
