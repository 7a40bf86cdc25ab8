"""Hostile files, a sample of each reader: refused in one line or read, no crash, nothing outside opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_mutations import Calm
from hostile_run import one, run
from hostile_targets import TARGETS, tiny

GRAPHS = ("graphs, onnxruntime", "graphs, openvino", "weights in a bundle")


@pytest.mark.parametrize("name", TARGETS)
def test_a_whole_file_is_accepted(name: str, tmp_path: Path) -> None:
    """Else all the hostile ones are refused for what the whole one has."""
    tiny()
    assert one(TARGETS[name], name, 0, 0, tmp_path, Calm()) == "accepted"


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    tiny()
    found = run(name, TARGETS[name], 1, 3 if name in GRAPHS else 25, tmp_path)
    assert found.cases == (3 if name in GRAPHS else 25)
    assert (dict(found.kinds), found.crashes, found.outside) == ({}, 0, 0)
    assert found.refused
