"""The rooms: which imports which, that nothing runs in a circle, and that each says what it is for."""

import ast
import re
from fnmatch import fnmatch

import pytest
from import_graph import PACKAGES, ROOT, circles, draw, room, rooms

ARROWS = {
    "benchmarks": ("bench", "exporter*", "runtime*", "plugins"),
    "bench": ("serving", "runtime*"),
    "serving roof": ("serving/ray", "serving", "runtime*"),
    "serving/ray": ("serving", "runtime*"),
    "serving": ("runtime*",),
    "exporter roof": (
        "exporter/verify",
        "exporter/engines",
        "exporter/graphs",
        "exporter/quantise",
        "exporter registry",
        "exporter/families",
        "exporter/checkpoints",
        "exporter ground",
        "runtime roof",
        "runtime/lora",
        "runtime/tasks",
        "runtime/sampling",
        "runtime/bundle",
        "runtime ground",
    ),
    "exporter/verify": (
        "exporter/quantise",
        "exporter registry",
        "exporter/families",
        "exporter/checkpoints",
        "runtime/backends",
        "runtime/bundle",
        "runtime ground",
    ),
    "exporter/engines": (
        "exporter ground",
        "runtime/pictures",
        "runtime/bundle",
        "runtime ground",
        "plugins",
    ),
    "exporter/graphs": (
        "exporter/quantise",
        "exporter/families",
        "exporter/checkpoints",
        "exporter ground",
        "runtime/bundle",
        "runtime ground",
    ),
    "exporter/quantise": (
        "exporter registry",
        "exporter/families",
        "exporter/checkpoints",
        "exporter ground",
        "runtime/sampling",
        "runtime/pictures",
        "runtime/bundle",
        "runtime ground",
        "plugins",
    ),
    "exporter registry": (
        "exporter/families/*",
        "exporter/families",
        "exporter/checkpoints",
        "exporter ground",
        "runtime/lora",
        "runtime ground",
    ),
    "exporter/families/*": (
        "exporter/families",
        "exporter/checkpoints",
        "runtime/lora",
        "runtime/bundle",
        "runtime ground",
    ),
    "exporter/families": (
        "exporter/checkpoints",
        "exporter ground",
        "runtime/lora",
        "runtime/bundle",
        "runtime ground",
    ),
    "exporter/checkpoints": ("exporter ground", "runtime/lora", "runtime/bundle", "runtime ground"),
    "exporter ground": ("runtime/bundle", "runtime ground"),
    "runtime roof": (
        "runtime/tasks",
        "runtime/sampling",
        "runtime/pictures",
        "runtime/backends",
        "runtime/lora",
        "runtime/bundle",
        "runtime ground",
    ),
    "runtime/tasks": (
        "runtime/sampling",
        "runtime/pictures",
        "runtime/lora",
        "runtime/bundle",
        "runtime ground",
    ),
    "runtime/sampling": (
        "runtime/pictures",
        "runtime/backends",
        "runtime/lora",
        "runtime/bundle",
        "runtime ground",
        "plugins",
    ),
    "runtime/pictures": ("runtime/backends", "runtime/bundle", "runtime ground"),
    "runtime/backends": ("runtime/bundle", "runtime ground", "plugins"),
    "runtime/lora": ("runtime/bundle", "runtime ground"),
    "runtime/bundle": ("runtime ground",),
    "runtime ground": (),
    "plugins": (),
}
"""From the roof to the ground: each room, and those that it may import; CONTRIBUTING.md shows the same."""

GRAPH = draw()
FOLDERS = sorted(
    {
        path.parent.relative_to(ROOT).as_posix()
        for folder in (*PACKAGES, "examples")
        for path in (ROOT / folder).rglob("__init__.py")
    }
)
SHORTEST = 150  # characters; a paragraph of two lines


def row(name):
    """The key of the table that a room's arrows stand under."""
    found = name if name in ARROWS else next((key for key in ARROWS if fnmatch(name, key)), None)
    assert found, f"{name} is not in the table of rooms"
    return found


def allowed(here, there):
    return here == there or any(fnmatch(there, each) for each in ARROWS[row(here)])


def test_no_import_runs_in_a_circle():
    assert circles(GRAPH) == []


def test_no_arrow_runs_upwards():
    wrong = [
        f"{path} imports {other}: {room(path)} may not import {room(other)}"
        for path, others in sorted(GRAPH.items())
        for other in sorted(others)
        if not allowed(room(path), room(other))
    ]
    assert wrong == []


def test_the_table_itself_runs_downwards():
    order = list(ARROWS)
    for place, (name, under) in enumerate(ARROWS.items()):
        for each in under:
            found = [other for other in order if other == each or fnmatch(other, each)]
            assert found, f"{each} is no room"
            assert all(order.index(other) > place for other in found), f"{name} may not import {each}"


def test_every_room_is_in_the_table():
    there = {row(name) for name in rooms(GRAPH)}
    assert set(ARROWS) == there, "rooms without files"


def test_contributing_shows_the_table():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]*) \|$", text, re.M)
    assert {name: tuple(re.findall(r"`([^`]+)`", cell)) for name, cell in shown} == ARROWS
    assert [name for name, _ in shown] == list(ARROWS)


def test_the_graph_counts_every_import(tmp_path):
    files = {
        "runtime/__init__.py": "",
        "runtime/roof.py": "import torch\ndef f():\n    from flux_trt.runtime.room import low\n",
        "runtime/room/__init__.py": "",
        "runtime/room/low.py": "if TYPE_CHECKING:\n    from flux_trt.runtime.roof import f\n",
        "runtime/room/near.py": "from . import low\nfrom .. import roof as r\nfrom .low import x\n",
        "runtime/room/named.py": "importlib.import_module('flux_trt.plugins')\n",
        "plugins/__init__.py": "",
        "benchmarks/script.py": "import flux_trt.runtime.room.low, rows.row\nfrom flux_trt import plugins\n",
        "benchmarks/rows/row.py": "from flux_trt.bench import job, Job\n",
        "benchmarks/bench/__init__.py": "",
        "benchmarks/bench/job.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = draw(tmp_path)
    assert found == {
        **{name: set() for name in files},
        "runtime/roof.py": {"runtime/room/low.py"},
        "runtime/room/low.py": {"runtime/roof.py"},
        "runtime/room/near.py": {"runtime/room/low.py", "runtime/roof.py"},
        "runtime/room/named.py": {"plugins/__init__.py"},
        "benchmarks/script.py": {"runtime/room/low.py", "benchmarks/rows/row.py", "plugins/__init__.py"},
        "benchmarks/rows/row.py": {"benchmarks/bench/job.py", "benchmarks/bench/__init__.py"},
    }
    assert circles(found) == [["runtime/roof.py", "runtime/room/low.py"]]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_says_what_lives_in_it(folder):
    told = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    head, _, rest = told.partition("\n\n")
    assert head.strip(), "no docstring"
    assert len(rest) >= SHORTEST, "a paragraph: what lives there, who may import it, how to add to it"
