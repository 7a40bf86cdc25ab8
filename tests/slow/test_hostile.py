"""Hostile files by the thousand; `python benchmarks/fuzz.py 100000` counts the whole 100,000."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_sample import outcomes
from hostile_targets import TARGETS

pytestmark = pytest.mark.slow

CASES = 5_000
GRAPHS = ("graphs, onnxruntime", "graphs, openvino", "weights in a bundle")
"""They load graphs: a twentieth of the others' cases."""


@pytest.mark.parametrize("name", TARGETS)
def test_no_hostile_file_crashes_or_is_read_outside(name: str, tmp_path: Path) -> None:
    whole = len(TARGETS) - len(GRAPHS) + 0.05 * len(GRAPHS)
    cases = round(CASES / whole * (0.05 if name in GRAPHS else 1))
    found = outcomes(tmp_path, 2, {name: cases})[name]
    assert found["cases"] == cases
    assert (found["kinds"], found["crashes"], found["outside"]) == ({}, 0, 0)
