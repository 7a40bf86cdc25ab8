"""What a reader may rely on: short files, and nothing that is true on one machine only."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 400  # lines
TEXT = {".py", ".md", ".toml", ".cfg", ".txt", ".json", ".yml", ".yaml", ""}
NOT_OURS = {".git", "build", "dist", "out", "runs", "__pycache__"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|home)/")


def files():
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part != ".ci" for part in parts[:-1])
        if not hidden and not NOT_OURS & set(parts) and path.is_file() and path.suffix in TEXT:
            yield path


PYTHON = [path for path in files() if path.suffix == ".py"]


def named(path):
    return str(path.relative_to(ROOT))


def test_the_walk_sees_every_folder():
    assert {"exporter", "runtime", "serving", "plugins", "benchmarks", "tests", "examples"} <= {
        path.relative_to(ROOT).parts[0] for path in PYTHON
    }


@pytest.mark.parametrize("path", PYTHON, ids=named)
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_no_file_names_a_place_on_one_machine():
    wrong = [
        f"{named(path)}:{number}: {line.strip()[:80]}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not wrong
