"""Hostile files by the thousand.

`python benchmarks/fuzz.py [CASES [SEED [SECONDS]]]` writes results/fuzz.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hostile_run import Outcome, run  # noqa: E402
from hostile_targets import TARGETS, tiny  # noqa: E402

PACKAGES = ("numpy", "onnxruntime", "openvino", "pillow", "pydantic", "tokenizers", "torch")
SLOW = ("graphs, onnxruntime", "graphs, openvino", "weights in a bundle")
"""They load graphs: a twentieth of the others' cases."""
ROUND = 200
"""Cases of a target at a time."""


def main() -> None:
    """Rounds over all targets, so that a run that is stopped has cases of each."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else float("inf")
    out = Path(sys.argv[4]) if len(sys.argv) > 4 else ROOT / "benchmarks" / "results" / "fuzz.json"
    began = time.monotonic()
    tiny()
    shares = {name: 0.05 if name in SLOW else 1.0 for name in TARGETS}
    wanted = {name: math.ceil(cases * share / sum(shares.values())) for name, share in shares.items()}
    found = {name: Outcome() for name in TARGETS}
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    while any(found[name].cases < number for name, number in wanted.items()):
        for name, target in TARGETS.items():
            if time.monotonic() - began > seconds:
                break
            start = found[name].cases
            stop = min(wanted[name], start + math.ceil(ROUND * shares[name]))
            run(name, target, seed, stop, folder, found[name], start)
            _write(out, cases, seed, time.monotonic() - began, found)
        if time.monotonic() - began > seconds:
            break
    shutil.rmtree(folder, ignore_errors=True)


def _write(out: Path, cases: int, seed: int, seconds: float, found: dict[str, Outcome]) -> None:
    rows = {
        name: {
            "cases": each.cases, "refused": each.refused, "accepted": each.accepted,
            "crashes": each.crashes, "outside": each.outside,
            "faults": {what: [count, each.seeds[what]] for what, count in each.kinds.most_common(20)},
        }
        for name, each in found.items()
    }  # fmt: skip
    total = {key: sum(row[key] for row in rows.values())
             for key in ("cases", "refused", "accepted", "crashes", "outside")}  # fmt: skip
    record = {
        "command": " ".join(("python", "benchmarks/fuzz.py", *sys.argv[1:4])), "seed": seed, "asked": cases,
        "seconds": round(seconds), "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "total": total, "targets": rows,
    }  # fmt: skip
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(
        round(seconds),
        total,
        {name: row["faults"] for name, row in rows.items() if row["faults"]},
        flush=True,
    )


if __name__ == "__main__":
    main()
