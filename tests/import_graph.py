"""The import graph of this repository, and the rooms it is divided into.

    python tests/import_graph.py            the rooms and what each imports, then the files
    python tests/import_graph.py --rooms    the rooms alone

Every import counts: at the top of a file, inside a function, under `TYPE_CHECKING`, relative, and
`importlib.import_module` of a written name. `from package import name` is an import of `package/name.py`
where there is such a file. Files are read, never imported, so that the picture needs no installation.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "plugins": "flux_trt.plugins",
    "runtime": "flux_trt.runtime",
    "exporter": "flux_trt.exporter",
    "serving": "flux_trt.serving",
    "benchmarks/bench": "flux_trt.bench",
    "benchmarks": "",  # scripts, and what lies beside them: found by their names alone
}
"""Folders and what they are called in an import; a file belongs to the first folder that holds it."""

APART = {
    "runtime/errors.py": "runtime ground",
    "runtime/lock.py": "runtime ground",
    "runtime/minimums.py": "runtime ground",
    "runtime/notation.py": "runtime ground",
    "runtime/lines.py": "runtime ground",
    "runtime/progress.py": "runtime ground",
    "exporter/faults.py": "exporter ground",
    "exporter/folder.py": "exporter ground",
    "exporter/place.py": "exporter ground",
    "exporter/written.py": "exporter ground",
    "exporter/lock.py": "exporter ground",
    "exporter/exchange.py": "exporter ground",
    "exporter/stamp.py": "exporter ground",
    "exporter/families/catalogue.py": "exporter registry",
    "exporter/families/recognise.py": "exporter registry",
    "exporter/engines/options.py": "exporter roof",  # words of the command line
    "exporter/quantise/options.py": "exporter roof",
    "serving/cli.py": "serving roof",
}
"""Files that belong to another room than their folder's."""
ROOFS = {"runtime": "runtime roof", "exporter": "exporter roof", "serving": "serving"}
"""What the files that lie directly in these folders are called together."""
FAMILIES = "exporter/families"
"""Each folder in it is a room of its own."""

Graph = dict[str, set[str]]


def sources(root: Path = ROOT) -> dict[str, str]:
    """Every Python file, as a path below `root`, by the name that it is imported by."""
    found: dict[str, str] = {}
    seen: set[Path] = set()
    for folder, package in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            if path in seen:
                continue
            seen.add(path)
            parts = list(path.relative_to(root / folder).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join([package, *parts] if package else parts)] = path.relative_to(root).as_posix()
    return found


def imported(text: str, module: str, is_package: bool) -> Iterator[tuple[str, ...]]:
    """What a file imports, each as the names that it may be, the longest first."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package else -1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield from ((f"{base}.{alias.name}", base) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = node.args[0]
            if called == "import_module" and isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield (name.value,)


def draw(root: Path = ROOT) -> Graph:
    """Every file, as a path below `root`, with the files it imports."""
    files = sources(root)
    graph: Graph = {}
    for module, path in files.items():
        text = (root / path).read_text(encoding="utf-8")
        arrows = graph.setdefault(path, set())
        for names in imported(text, module, path.endswith("__init__.py")):
            known = next((files[name] for name in names if name in files), None)
            if known and known != path:
                arrows.add(known)
    return graph


def room(path: str) -> str:
    """The room that a file lies in."""
    if path in APART:
        return APART[path]
    folder, *inside = path.split("/")[:-1]
    if folder == "benchmarks":
        return "bench" if inside[:1] == ["bench"] else "benchmarks"
    if folder not in ROOFS:
        return folder
    if not inside:
        return ROOFS[folder]
    name = f"{folder}/{inside[0]}"
    return f"{name}/{inside[1]}" if name == FAMILIES and len(inside) > 1 else name


def rooms(graph: Mapping[str, Iterable[str]]) -> Graph:
    """The rooms, each with the other rooms it imports."""
    found: Graph = {}
    for path, arrows in graph.items():
        here = found.setdefault(room(path), set())
        here |= {room(other) for other in arrows} - {room(path)}
    return found


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of two or more that reach one another, sorted; none in a graph that runs downwards."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        open_ = [start]
        while open_:
            fresh = set(graph.get(open_.pop(), ())) - seen
            seen |= fresh
            open_ += fresh
        return seen

    far = {name: reach(name) for name in graph}
    groups = {frozenset(other for other in far[name] if name in far.get(other, ())) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def floors(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """From the roof to the ground: each name one floor above the highest that it imports."""
    height: dict[str, int] = {}

    def measure(name: str, above: frozenset[str]) -> int:
        if name not in height:
            under = [each for each in graph[name] if each not in above]
            height[name] = 1 + max((measure(each, above | {name}) for each in under), default=-1)
        return height[name]

    for name in sorted(graph):
        measure(name, frozenset({name}))
    return [sorted(n for n in height if height[n] == floor) for floor in sorted(set(height.values()))[::-1]]


def told(graph: Graph, rooms_only: bool = False) -> Iterator[str]:
    """The graph as lines of text."""
    between = rooms(graph)
    order = [name for floor in floors(between) for name in floor]
    wide = max(map(len, order)) + 2
    yield "ROOMS, from the roof down, and the rooms that each imports"
    for floor in floors(between):
        yield ""
        for name in floor:
            yield f"  {name:{wide}}{', '.join(sorted(between[name], key=order.index)) or '-'}"
    yield from (f"\n  A CIRCLE: {', '.join(group)}" for group in circles(between))
    if rooms_only:
        return
    yield f"\nFILES, {len(graph)} of them, and the files that each imports"
    for name in order:
        yield f"\n{name}"
        inside = [path for path in graph if room(path) == name]
        for floor in floors({path: graph[path] & set(inside) for path in inside}):
            for path in floor:
                yield f"  {path}"
                yield from (f"      {line}" for line in _arrows(graph[path], name, order))
    yield from (f"\nA CIRCLE: {', '.join(group)}" for group in circles(graph))


def _arrows(targets: Iterable[str], here: str, order: Sequence[str]) -> Iterator[str]:
    """One line for each room, this one first."""
    found: dict[str, list[str]] = {}
    for path in sorted(targets):
        # A package's own file is called by its folder.
        name = path.removesuffix("/__init__.py").removesuffix(".py").rpartition("/")[2]
        found.setdefault(room(path), []).append(name)
    for name in sorted(found, key=lambda each: (each != here, order.index(each))):
        yield f"{'beside it' if name == here else name}: {', '.join(found[name])}"


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rooms", action="store_true", help="leave the files out")
    print("\n".join(told(draw(), parser.parse_args().rooms)))


if __name__ == "__main__":
    main()
