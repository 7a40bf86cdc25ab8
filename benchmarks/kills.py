"""`kill -9` at random moments: `python benchmarks/kills.py [KILLS [SECONDS [SEED]]]`.

Each command runs once undisturbed. Then it is killed at a moment drawn over all of its length, or, every
other time, over what is left of it when its first file has appeared; the process alone, or, every other two
times, with all of its children. What lies there is looked at, and the command runs again: it ends well, the
files are those of the undisturbed run, byte by byte, and no file lies beside them. Two kinds of file are
compared by what they say: lines of results, which have times, and TensorRT's plans, which differ from build
to build.

A command is the function that the installed command calls, in a process that is forked when the libraries are
imported: that writes nothing and takes most of the time of so small models.
results/kills.json has the counts.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from PIL import Image  # noqa: E402
from tiny_bundle import build  # noqa: E402

from flux_trt.exporter.cli import main as flux_export  # noqa: E402
from flux_trt.exporter.quantise import calibration  # noqa: E402
from flux_trt.runtime.bundle.bundle import Bundle  # noqa: E402
from flux_trt.runtime.cli import main as flux_run  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "kills.json"
NANO = ROOT / "examples" / "flux-nano"
TARGET = ("--backend", "tensorrt-rtx", "--sm", "8.9", "--stages", "clip,t5,conditioner,denoiser")
"""TensorRT does not take the tiny bundle's decoder."""
PARTS = ("--stages", "clip,conditioner")
MANY = ("--seed", "1", "-n", "40", "--force", "-o", "OUT/a.png")
LIBRARIES = ("exporter.build", "exporter.quantise.ranges", "runtime.jobrun", "runtime.backends.ort")
SIZE = ("--size", "64x64", "--steps", "2")
PAINTING = ("--backend", "onnxruntime", "--device", "cpu")


@dataclass
class Command:
    """A command, what lies in its folder before, and what was found. OUT/ stands for the folder."""

    name: str
    words: list[str | Path]
    share: int
    """Of a hundred kills."""
    prepare: Callable[[Path], object] = lambda place: None
    length: float = 0
    whole: dict[str, str] = field(default_factory=dict)
    drawn: int = 0
    found: dict[str, Any] = field(
        default_factory=lambda: {"kills": 0, "with files there": 0, "half": [], "other after the rerun": []}
    )

    def start(self, place: Path, said: Path) -> int:
        """Its process."""
        child = os.fork()
        if child:
            return child
        os.setsid()
        with said.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        command = {"flux-run": flux_run, "flux-export": flux_export}[self.name]
        code = 70
        try:
            command([str(word).replace("OUT/", f"{place}/") for word in self.words], prog_name=self.name)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def run(self, place: Path, said: Path) -> int:
        """Let it end: its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(place, said), 0)[1])


def commands(work: Path) -> dict[str, Command]:
    """What is killed: one of each kind that writes."""
    tiny = build(work / "tiny")
    job = {"prompt": "a red circle", "size": "64x64", "steps": 2}
    lines = [json.dumps(job | {"seed": n, "output": f"{n}.png"}) for n in range(40)]
    prompts = work / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    run, export = "flux-run", "flux-export"
    return {
        "generate": Command(
            run,
            ["generate", tiny, "a red circle", *SIZE, *MANY, *PAINTING],
            22,
        ),
        "jobs": Command(
            run,
            ["generate", tiny, "--jobs", "OUT/jobs.jsonl", *PAINTING],
            22,
            lambda place: (place / "jobs.jsonl").write_text("\n".join(lines) + "\n"),
        ),
        "calibrate": Command(
            export,
            ["calibrate", NANO, "--prompts", prompts, *SIZE, "-o", "OUT/c.json"],
            20,
        ),
        "engines": Command(
            export,
            ["engines", "OUT/bundle", *TARGET],
            18,
            lambda place: shutil.copytree(tiny, place / "bundle"),
        ),
        "build": Command(export, ["build", NANO, "-o", "OUT/bundle", *PARTS], 18),
    }  # fmt: skip


def main() -> None:
    """The command that lies farthest behind its share is the next one."""
    kills, seconds, seed = (
        float(word) for word in [*sys.argv[1:], *["100", "7200", "0"][len(sys.argv) - 1 :]]
    )
    for name in LIBRARIES:
        importlib.import_module(f"flux_trt.{name}")
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    rng, began = random.Random(int(seed)), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tried, said = commands(Path(folder)), Path(folder) / "said"
        while sum(each.found["kills"] for each in tried.values()) < kills:
            if time.monotonic() - began > seconds:
                break
            name = min(tried, key=lambda each: tried[each].found["kills"] / tried[each].share)
            command, place = tried[name], Path(folder) / name
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            command.prepare(place)
            if not command.whole:
                start = time.monotonic()
                if command.run(place, said):
                    raise SystemExit(f"{name} failed by itself: {said.read_text()}")
                command.whole, command.length = _digests(place), time.monotonic() - start
            else:
                _kill(rng, command, place, said)
            _write(int(kills), int(seed), tried)
            print(round(time.monotonic() - began), name, command.found, flush=True)


def _write(kills: int, seed: int, tried: dict[str, Command]) -> None:
    rows = {name: each.found for name, each in tried.items()}
    record = {
        "command": f"python benchmarks/kills.py {kills} 7200 {seed}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "asked": kills,
        "kills": sum(row["kills"] for row in rows.values()),
        "with files there": sum(row["with files there"] for row in rows.values()),
        "half": sum(len(row["half"]) for row in rows.values()),
        "other after the rerun": sum(len(row["other after the rerun"]) for row in rows.values()),
        "commands": rows,
    }
    OUT.write_text(json.dumps(record, indent=2) + "\n")


def _kill(rng: random.Random, command: Command, place: Path, said: Path) -> None:
    before, start = _seen(place), time.monotonic()
    child = command.start(place, said)
    command.drawn += 1
    ended = 0
    if command.drawn % 2:
        while not ended and _seen(place) == before:
            time.sleep(0.005)
            ended, _ = os.waitpid(child, os.WNOHANG)
    passed = time.monotonic() - start
    time.sleep(rng.random() * max(0.2, command.length - passed))
    if ended or os.waitpid(child, os.WNOHANG)[0]:
        return  # it was done before its moment came
    (os.kill if command.drawn % 4 < 2 else os.killpg)(child, signal.SIGKILL)
    os.waitpid(child, 0)
    row = command.found
    row["kills"] += 1
    row["with files there"] += _seen(place) != before
    row["half"] += _half(place)
    code = command.run(place, said)
    found = _digests(place)
    if code or found != command.whole:
        either = found.keys() | command.whole.keys()
        different = sorted(key for key in either if found.get(key) != command.whole.get(key))
        row["other after the rerun"].append([code, different[:4], said.read_text()[-300:]])


def _seen(place: Path) -> set[str]:
    """Every path of a folder that may change under the walk."""
    return {f"{root}/{name}" for root, inner, files in os.walk(place) for name in [*inner, *files]}


def _half(place: Path) -> list[str]:
    """What has its real name and is not whole."""
    found = []
    for path in place.glob("[!.]*.png"):
        try:
            Image.open(path).load()
        except Exception as fault:
            found.append(f"{path.name}: {fault}")
    if (place / "c.json").exists():
        try:
            calibration.read(place / "c.json")
        except Exception as fault:
            found.append(str(fault))
    if (place / "bundle").exists():
        try:
            opened = Bundle.open(place / "bundle")
            for name, record in opened.manifest.files.items():
                if hashlib.sha256((opened.root / name).read_bytes()).hexdigest() != record.sha256:
                    found.append(name)
        except Exception as fault:
            found.append(str(fault))
        found += [
            engine.name for engine in (place / "bundle" / "engines").glob("[!.]*") if not _engine(engine)
        ]
    return found


def _engine(folder: Path) -> str | None:
    """What an engine says about itself, or None if its plan is not the one it tells of."""
    try:
        record, plan = (
            json.loads((folder / "engine.json").read_bytes()),
            (folder / "engine.plan").read_bytes(),
        )
    except (OSError, ValueError):
        return None
    told = {"bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
    return json.dumps(record["recipe"], sort_keys=True) if record["plan"] == told else None


def _digests(place: Path) -> dict[str, str]:
    found = {}
    for path in sorted(each for each in place.rglob("*") if each.is_file()):
        name, data = path.relative_to(place).as_posix(), path.read_bytes()
        if name.endswith(".results.jsonl"):
            lines = {line["job"]: line["ok"] for line in map(json.loads, data.splitlines())}
            data = json.dumps(lines, sort_keys=True).encode()
        elif path.name in ("engine.json", "engine.plan"):
            data = (_engine(path.parent) or "not whole").encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


if __name__ == "__main__":
    main()
