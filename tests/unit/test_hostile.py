"""Hostile files, a sample of each reader: refused in one line or read, no crash, nothing outside opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hostile_mutations import Calm
from hostile_run import one
from hostile_sample import outcomes
from hostile_targets import TARGETS, tiny

GRAPHS = ("graphs, onnxruntime", "graphs, openvino", "weights in a bundle")
CASES = {name: 3 if name in GRAPHS else 25 for name in TARGETS}


@pytest.mark.parametrize("name", TARGETS)
def test_a_whole_file_is_accepted(name: str, tmp_path: Path) -> None:
    """Else all the hostile ones are refused for what the whole one has."""
    tiny()
    assert one(TARGETS[name], name, 0, 0, tmp_path, Calm()) == "accepted"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return outcomes(tmp_path_factory.mktemp("hostile"), 1, CASES)


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_refused_in_one_line(name: str, found: dict[str, dict[str, Any]]) -> None:
    of = found[name]
    assert of["cases"] == CASES[name]
    assert (of["kinds"], of["crashes"], of["outside"]) == ({}, 0, 0)
    assert of["refused"]
