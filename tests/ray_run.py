"""flux-serve and flux-run with Ray, each in a process that takes its cluster along when it ends."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from serving_run import wait

PATIENCE = 240  # seconds: two cores may have much else to do
CPU = ("--backend", "onnxruntime", "--device", "cpu")


@contextmanager
def folder() -> Iterator[Path]:
    """Ray's own, with a short name, since sockets lie in it; and a home for its token."""
    path = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def environment(path: Path) -> dict[str, str]:
    """Of a process whose Ray lives in a folder."""
    left = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**left, "HOME": str(path), "RAY_TMPDIR": str(path), "PYTHONUNBUFFERED": "1"}


@dataclass
class Serving:
    """A server that is ready."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    log: Path
    key: str
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, **options: Any) -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, **options)
        self.clients.append(made)
        return made

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    def replicas(self) -> list[psutil.Process]:
        """Their processes."""
        return [each for each in descendants(self.process.pid) if "ServeReplica" in named(each)]

    def counted(self, name: str) -> dict[str, float]:
        """What each replica has counted, by its name."""
        lines = re.findall(rf'^{name}{{[^}}]*replica="(\w+)"[^}}]*}} (\S+)$', self.get("/metrics").text, re.M)
        found: dict[str, float] = {}
        for replica, value in lines:
            found[replica] = found.get(replica, 0.0) + float(value)
        return found


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below one."""
    return psutil.Process(pid).children(recursive=True)


def named(process: psutil.Process) -> str:
    """What a process calls itself."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def serving(
    bundle: Path, *options: str, replicas: int = 2, more: Mapping[str, str] | None = None
) -> Iterator[Serving]:
    """`flux-serve BUNDLE --ray` until the block ends; all replicas are there; `more` is set around it."""
    key = "a-key-of-the-tests"
    with folder() as place:
        (place / "keys").write_text(f"{key}\n")
        command = [sys.executable, "-m", "flux_trt.serving.cli", str(bundle), "--ray", "--port", "0", *CPU]
        command += ["--api-key-file", str(place / "keys"), "--replicas", str(replicas), *options]
        log = place / "log"
        with (
            log.open("wb") as out,
            subprocess.Popen(
                command, stdout=out, stderr=out, env=environment(place) | dict(more or {})
            ) as process,
        ):
            try:
                wait(lambda: over(process) or "http://" in log.read_text(), PATIENCE)
                url = re.search(r"http://\S+", log.read_text())
                assert url, log.read_text()
                made = Serving(process, url.group(), place, log, key)
                wait(lambda: over(process) or made.get("/readyz").status_code == 200, PATIENCE)
                wait(lambda: f"flux_replicas {replicas}.0" in made.get("/metrics").text, PATIENCE)
                yield made
                for each in made.clients:
                    each.close()
            finally:
                end(process)


def over(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended."""
    return process.poll() is not None


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop it with all that it has started."""
    if not over(process):
        below = descendants(process.pid)
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        for each in below:
            if each.is_running():
                each.kill()


def run(
    *words: Any, cwd: Path, place: Path, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`flux-run generate` with Ray's files in a folder."""
    command = [sys.executable, "-m", "flux_trt.runtime.cli", "generate", *map(str, words), *CPU]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(place) | dict(more or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
