"""Everything that only a GPU can show, in one run: checks, then times, then a summary to send back.

    make gpu                                 or: python3 benchmarks/gpu.py [--minutes 30] [--plan]

Needs a machine with an NVIDIA driver, Python 3.11 with venv, pip and a connection to a package index; what
else is needed is installed into .venv-gpu. It stops by itself. Results lie in benchmarks/results/gpu-CARD/,
in the format of the others, and are written after every part: a run that is stopped leaves what it has found.
"""

from __future__ import annotations

import argparse
import configparser
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from on_gpu import child, machine, told
from on_gpu.parts import PARTS, Part

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-gpu"
RESERVE = 45.0
"""Seconds at the end for ending what runs and for writing."""
PIP = (
    "-m",
    "pip",
    "install",
    "--disable-pip-version-check",
    "--progress-bar",
    "off",
    "--constraint",
    "constraints.txt",
)
INSTALLS = (
    Part("environment", (), (sys.executable, "-m", "venv", "{venv}"), 120, least=30),
    Part(
        "install",
        (),
        ("{python}", *PIP, "--editable", ".[gpu,export]", "pytest", "matplotlib"),
        900,
        least=60,
    ),
    Part("install TensorRT", (), ("{python}", *PIP, "--editable", ".[{flavour}]"), 600, least=60),
)


def main() -> int:
    """Run it; 1 where something failed, or nothing could be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after so long; default 30")
    parser.add_argument("--plan", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="only parts whose name begins so"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    parts = [each for each in PARTS if not options.only or each.name.startswith(tuple(options.only))]
    if not parts:
        parser.error(f"no part begins so; there are: {', '.join(each.name for each in PARTS)}")
    card = "--plan was given" if options.plan else machine.look()
    if isinstance(card, str):
        print(f"Nothing was run: {card}." if options.plan else f"No NVIDIA GPU: {card}. Nothing was run.")
        print(f"With a GPU `make gpu` does this, and stops after {options.minutes:g} minutes at most:")
        print("\n".join(told.plan(parts)))
        return 0 if options.plan else 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return carry_out(card, parts, 60 * options.minutes, options.out / f"gpu-{card.slug}")


def carry_out(card: machine.Card, parts: list[Part], seconds: float, out: Path) -> int:
    """Install, run the parts one by one while there is time, and write what was found after each."""
    started = time.monotonic()
    work = ROOT / "out" / "gpu"
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    bin_ = VENV / ("Scripts" if os.name == "nt" else "bin")
    words = {
        **{"venv": str(VENV), "bin": str(bin_), "python": str(bin_ / "python"), "work": str(work)},
        **{"out": str(out), "flavour": card.flavour, "sm": card.capability},
    }
    print(f"{card.name}, sm {card.capability}, driver {card.driver}, {card.flavour}", flush=True)
    found: list[dict[str, Any]] = []
    able = True
    try:
        for part in (*INSTALLS, *parts):
            left = seconds - (time.monotonic() - started) - RESERVE
            if not able:
                each = _not_run(part, "the packages could not be installed")
            elif left < part.least:
                each = _not_run(part, f"{max(left, 0):.0f} s were left")
            else:
                print(f"...      {part.name}", flush=True)
                each = child.run(part, words, min(part.seconds, left), ROOT)
            able = able and (part not in INSTALLS[:2] or each["state"] == "passed")
            found.append(each)
            print(told.line(each), flush=True)
            _write(card, found, time.monotonic() - started, out)
    finally:
        _write(card, found, time.monotonic() - started, out)
        archive = shutil.make_archive(str(work / out.name), "zip", out)
        print(f"\nSummary: {_short(out / 'summary.md')}\nTo send back: {_short(Path(archive))}")
    return int(any(each["state"] in ("failed", "stopped") for each in found) or not able)


def _not_run(part: Part, why: str) -> dict[str, Any]:
    return {"name": part.name, "shows": list(part.shows), "seconds": 0.0, "state": "not run", "why": why}


def _write(card: machine.Card, parts: list[dict[str, Any]], seconds: float, out: Path) -> None:
    """checks.json and summary.md, without places of this machine."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    checks = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "make gpu",
        "hardware": {
            **{"gpu": card.name, "capability": card.capability, "driver": card.driver},
            **{"memory_gb": card.memory_gb, "power_limit_w": card.power_limit_w, "cores": os.cpu_count()},
        },
        "python": sys.version.split()[0],
        "flux_trt": config["metadata"]["version"],
        "commit": _commit(),
        "flavour": card.flavour,
        "seconds": round(seconds, 1),
        "parts": parts,
    }
    text = child.without_places(json.dumps(checks, indent=2), ROOT)
    (out / "checks.json").write_text(text + "\n", encoding="utf-8")
    (out / "summary.md").write_text(told.summary(json.loads(text), out), encoding="utf-8")


def _commit() -> str:
    try:
        ask = ["git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "no commit"


def _short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - nothing has looked at the version before
        found = sys.version.split()[0]
        sys.exit(f"Error: this is Python {found}; give one of 3.11 or newer: make gpu PYTHON=...")
    sys.exit(main())
