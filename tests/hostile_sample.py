"""Hostile cases from a process of their own: a child that is forked beside other threads may find locks held.

python tests/hostile_sample.py FOLDER SEED '{"bundle.json": 25, ...}'    # an outcome a line, as JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any


def outcomes(folder: Path, seed: int, cases: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Reader -> what became of so many cases of it: the fields of `hostile_run.Outcome`."""
    command = [sys.executable, __file__, str(folder), str(seed), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {found.pop("name"): found for found in map(json.loads, done.stdout.splitlines())}


def main() -> None:
    """Run the cases; the corpus is made before any child."""
    from hostile_run import run
    from hostile_targets import TARGETS, tiny

    folder, seed, cases = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    tiny()
    for name, many in cases.items():
        found = run(name, TARGETS[name], seed, many, folder)
        print(json.dumps({"name": name, **asdict(found)}), flush=True)


if __name__ == "__main__":
    main()
