"""`kill -9` at random moments: `python benchmarks/kills.py [SECONDS [SEED]]` writes results/kills.json.

Each command runs once undisturbed; then it is killed between the moment its first file appears and its end,
what lies there is looked at, and it runs again: the same as undisturbed, and no file beside it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from PIL import Image  # noqa: E402
from tiny_bundle import build  # noqa: E402

from flux_trt.runtime.bundle.bundle import Bundle  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "kills.json"
BIN = Path(sys.executable).parent
NANO = ROOT / "examples" / "flux-nano"
KILLS = 100
NOT_TRIED = ["engines", "calibrate"]
VOLATILE = (".results.jsonl",)
"""Lines of results count, not their bytes."""


def main() -> None:
    """The command of which the least time was spent is the next one."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3600
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    rng, began = random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tiny = build(work / "tiny")
        job = {"prompt": "a red circle", "size": "64x64", "steps": 2}
        lines = [json.dumps(job | {"seed": n, "output": f"{n}.png"}) for n in range(40)]
        (work / "jobs.jsonl").write_text("\n".join(lines) + "\n")
        painting = ["--backend", "onnxruntime", "--device", "cpu"]
        commands = {
            "generate": [BIN / "flux-run", "generate", tiny, "a red circle", "--seed", "1", "--size", "64x64",
                         "--steps", "2", "-n", "40", "--force", "-o", "OUT/a.png", *painting],
            "jobs": [BIN / "flux-run", "generate", tiny, "--jobs", "OUT/jobs.jsonl", *painting],
            "build": [BIN / "flux-export", "build", NANO, "-o", "OUT/bundle"],
        }  # fmt: skip
        wholes: dict[str, tuple[dict[str, str], float]] = {}
        spent = dict.fromkeys(commands, 0.0)
        rows: dict[str, dict[str, Any]] = {
            name: {"kills": 0, "with files there": 0, "half": [], "other after the rerun": []}
            for name in commands
        }
        while sum(row["kills"] for row in rows.values()) < KILLS and time.monotonic() - began < seconds:
            name = min(commands, key=lambda each: spent[each])
            start, place = time.monotonic(), _place(work, name)
            if name not in wholes:
                subprocess.run(_at(commands[name], place), check=True, capture_output=True)
                wholes[name] = (_digests(place), time.monotonic() - start)
            else:
                _kill(rng, commands[name], place, *wholes[name], rows[name])
            spent[name] += time.monotonic() - start
            _write(seconds, seed, rows)
            print(name, round(time.monotonic() - began), rows[name], flush=True)


def _write(seconds: float, seed: int, rows: dict[str, dict[str, Any]]) -> None:
    record = {
        "command": f"python benchmarks/kills.py {seconds:g} {seed}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "asked": KILLS,
        "kills": sum(row["kills"] for row in rows.values()),
        "not tried": NOT_TRIED,
        "commands": rows,
    }
    OUT.write_text(json.dumps(record, indent=2) + "\n")


def _place(work: Path, name: str) -> Path:
    place = work / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    shutil.copy(work / "jobs.jsonl", place)
    return place


def _at(command: list[object], place: Path) -> list[str]:
    return [str(each).replace("OUT/", f"{place}/") for each in command]


def _kill(
    rng: random.Random,
    command: list[object],
    place: Path,
    whole: dict[str, str],
    duration: float,
    row: dict[str, Any],
) -> None:
    child = subprocess.Popen(
        _at(command, place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    before, start = set(place.rglob("*")), time.monotonic()
    while child.poll() is None and set(place.rglob("*")) == before:
        time.sleep(0.005)
    rest = max(0.2, duration - (time.monotonic() - start))
    time.sleep(rng.random() * rest)
    if child.poll() is not None:
        return  # it was done before its moment came
    child.send_signal(signal.SIGKILL)
    child.wait()
    row["kills"] += 1
    row["with files there"] += set(place.rglob("*")) != before
    row["half"] += _half(place)
    again = subprocess.run(_at(command, place), capture_output=True, text=True)
    found = _digests(place)
    if again.returncode or found != whole:
        different = sorted(key for key in found.keys() | whole.keys() if found.get(key) != whole.get(key))
        row["other after the rerun"].append([again.returncode, different[:4], again.stderr[-200:]])


def _half(place: Path) -> list[str]:
    """What has its real name and is not whole."""
    found = []
    for path in place.glob("*.png"):
        try:
            Image.open(path).load()
        except Exception as fault:
            found.append(f"{path.name}: {fault}")
    if (place / "bundle").exists():
        try:
            opened = Bundle.open(place / "bundle")
            for name, record in opened.manifest.files.items():
                if hashlib.sha256((opened.root / name).read_bytes()).hexdigest() != record.sha256:
                    found.append(name)
        except Exception as fault:
            found.append(str(fault))
    return found


def _digests(place: Path) -> dict[str, str]:
    found = {}
    for path in sorted(each for each in place.rglob("*") if each.is_file()):
        name, data = path.relative_to(place).as_posix(), path.read_bytes()
        if name.endswith(VOLATILE):
            lines = {line["job"]: line["ok"] for line in map(json.loads, data.splitlines())}
            data = json.dumps(lines, sort_keys=True).encode()
        elif name.endswith(".png"):
            data = Image.open(path).tobytes()
        elif name.endswith("bundle.json"):
            record = json.loads(data)
            data = json.dumps(record["files"], sort_keys=True).encode()  # not the date
        found[name] = hashlib.sha256(data).hexdigest()
    return found


if __name__ == "__main__":
    main()
