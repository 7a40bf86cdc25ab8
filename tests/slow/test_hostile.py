"""Hostile files by the thousand; `python benchmarks/fuzz.py 100000` counts the whole 100,000."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_run import run
from hostile_targets import TARGETS, tiny

pytestmark = pytest.mark.slow

CASES = 5_000
GRAPHS = ("graphs, onnxruntime", "graphs, openvino", "weights in a bundle")
"""They load graphs: a twentieth of the others' cases."""


@pytest.mark.parametrize("name", TARGETS)
def test_no_hostile_file_crashes_or_is_read_outside(name: str, tmp_path: Path) -> None:
    tiny()
    whole = len(TARGETS) - len(GRAPHS) + 0.05 * len(GRAPHS)
    cases = round(CASES / whole * (0.05 if name in GRAPHS else 1))
    found = run(name, TARGETS[name], 2, cases, tmp_path)
    assert found.cases == cases
    assert (dict(found.kinds), found.crashes, found.outside) == ({}, 0, 0)
