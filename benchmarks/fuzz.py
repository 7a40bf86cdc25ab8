"""Hostile files by the thousand: `python benchmarks/fuzz.py [CASES] [SEED]` writes results/fuzz.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hostile_run import run  # noqa: E402
from hostile_targets import TARGETS, tiny  # noqa: E402

PACKAGES = ("numpy", "onnxruntime", "openvino", "pillow", "pydantic", "tokenizers", "torch")
SLOW = ("graphs, onnxruntime", "graphs, openvino", "weights in a bundle")
"""They load graphs: a tenth of the others' cases."""


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    out = Path(sys.argv[3]) if len(sys.argv) > 3 else ROOT / "benchmarks" / "results" / "fuzz.json"
    tiny()
    shares = {name: 0.1 if name in SLOW else 1.0 for name in TARGETS}
    found = {}
    for name, target in TARGETS.items():
        number = -(-int(cases * shares[name]) // max(1, round(sum(shares.values()))))
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(name, target, seed, number, Path(folder))
        found[name] = {
            "cases": outcome.cases, "refused": outcome.refused, "accepted": outcome.accepted,
            "crashes": outcome.crashes, "outside": outcome.outside,
            "faults": {what: [count, outcome.seeds[what]] for what, count in outcome.kinds.most_common(20)},
        }  # fmt: skip
        print(name, json.dumps(found[name]), flush=True)
        total = {key: sum(each[key] for each in found.values())
                 for key in ("cases", "refused", "accepted", "crashes", "outside")}  # fmt: skip
        out.write_text(json.dumps({
            "command": f"python benchmarks/fuzz.py {cases} {seed}", "seed": seed, "asked": cases,
            "date": datetime.date.today().isoformat(), "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "total": total, "targets": found,
        }, indent=2) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
