"""The numbers in README.md, rendered from the results files; nothing there is typed by hand.

python benchmarks/table.py            rewrite the block between the two comments
python benchmarks/table.py --check    exit 1 when it is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rows import building, pictures, speed

HERE = Path(__file__).parent
BEGIN, END = "<!-- numbers: python benchmarks/table.py -->", "<!-- end of numbers -->"

FILES = {
    "full_size.json": building.full_size,
    "full_size_engines.json": building.engines,
    "build.json": building.build,
    "cold_start.json": speed.cold_start,
    "bench/run.json": speed.run,
    "bench/roofline.json": speed.roofline,
    "bench/scaling.json": speed.scaling,
    "cpu.json": speed.cpu,
    "ladder.json": speed.ladder,
    "tiles.json": speed.tiles,
    "flux_nano_score.json": pictures.score,
    "tasks.json": pictures.tasks,
    "fp8.json": pictures.fp8,
}


def render(results: Path) -> str:
    """The block, its two comments included; a results file that is not there has no rows."""
    lines, made = [], []
    for name, rows in FILES.items():
        path = results / name
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            source = f"[{path.stem}](benchmarks/results/{name})"
            lines += [f"| {what} | {value} | {target} | {source} |" for what, value, target in rows(found)]
            about = found.get("about", found)
            made.append(f"{path.stem}: {about['date'][:10]}, {_machine(about.get('hardware'))}.")
    if not lines:
        return f"{BEGIN}\nNo results are committed yet.\n{END}"
    head = ["| what | measured | target | from |", "|---|---|---|---|"]
    return "\n".join([BEGIN, *head, *lines, "", " ".join(made), END])


def _machine(hardware: object) -> str:
    if not isinstance(hardware, Mapping):
        return str(hardware)
    gpu = hardware.get("gpu")
    return f"{hardware['cpu']}, {hardware['cores']} cores, {f'GPU {gpu}' if gpu else 'no GPU'}"


def replaced(text: str, block: str) -> str:
    """`text` with `block` between the comments.

    Raises:
        SystemExit: the comments are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page lacks {BEGIN} or {END}")
    return before + block + after


def main() -> int:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when stale")
    parser.add_argument("--page", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    old = options.page.read_text(encoding="utf-8")
    new = replaced(old, render(options.results))
    if options.check and new != old:
        print(f"{options.page.name} is stale; run: python benchmarks/table.py", file=sys.stderr)
        return 1
    if new != old:
        options.page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
