"""The tables of numbers in README.md and docs/, rendered from the results files, not typed by hand.

python benchmarks/table.py            rewrite the blocks between their two comments
python benchmarks/table.py --check    exit 1 when they are not what the results say
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rows import building, headlines, pictures, speed
from rows.row import Results, Row

HERE = Path(__file__).parent
PAGES = [HERE.parent / name for name in ("README.md", "docs/numbers.md", "docs/cpu.md", "docs/lora.md")]
BLOCK = re.compile(r"(<!-- (\w+): python benchmarks/table\.py -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)
NOTHING = "No results are committed yet.\n"

Rows = Callable[[Results], Iterator[Row]]
FILES: dict[str, Rows] = {
    "full_size.json": building.full_size,
    "full_size_engines.json": building.engines,
    "full_size_flux2.json": building.full_size_flux2,
    "full_size_engines_flux2.json": building.engines_flux2,
    "build.json": building.build,
    "decode.json": building.decode,
    "cold_start.json": speed.cold_start,
    "bench/run.json": speed.run,
    "bench/roofline.json": speed.roofline,
    "bench/scaling.json": speed.scaling,
    "cpu.json": speed.cpu,
    "cpu-amx.json": speed.cpu,
    "soak.json": speed.soak,
    "lora.json": speed.lora,
    "ladder.json": speed.ladder,
    "tiles.json": speed.tiles,
    "flux_nano_score.json": pictures.score,
    "tasks.json": pictures.tasks,
    "fp8.json": pictures.fp8,
    "fp8_qdq.json": pictures.fp8_qdq,
    "solver.json": pictures.solver,
    "counted.json": building.counted,
}
HEADLINES: dict[str, Rows] = {
    "full_size.json": headlines.full_size,
    "build.json": headlines.build,
    "full_size_engines.json": headlines.engines,
    "cold_start.json": headlines.cold_start,
    "bench/run.json": headlines.run,
    "cpu.json": headlines.cpu,
    "flux_nano_score.json": headlines.score,
    "tasks.json": headlines.tasks,
    "fp8.json": headlines.fp8,
}


def numbers(results: Path) -> str:
    """Every figure with its target and its file, for a page in docs/, and what each file was made on."""
    found = _found(results, FILES)
    lines = _table("| what | measured | target | from |", FILES, found, "../")
    made = []
    for name, result in found.items():
        about = result.get("about", result)
        made.append(f"- {Path(name).stem}: {about['date'][:10]}, {_machine(about.get('hardware'))}")
    return "\n".join([*lines, "", *made, ""]) if lines else NOTHING


def few(results: Path) -> str:
    """The figures that matter most to a user, for the README."""
    lines = _table("| what | measured | beside it | from |", HEADLINES, _found(results, HEADLINES), "")
    return "\n".join([*lines, ""]) if lines else NOTHING


def _found(results: Path, files: Mapping[str, Rows]) -> dict[str, Results]:
    """What the files hold; one that is not there is left out."""
    paths = {name: results / name for name in files}
    return {
        name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()
    }


def _table(head: str, files: Mapping[str, Rows], found: Mapping[str, Results], up: str) -> list[str]:
    """Lines of a table; `up` leads from the page to the repository's root."""
    lines = [
        f"| {what} | {value} | {beside} | [{Path(name).stem}]({up}benchmarks/results/{name}) |"
        for name, result in found.items()
        for what, value, beside in files[name](result)
    ]
    return [head, "|---|---|---|---|", *lines] if lines else []


def steps(results: Path, name: str = "cpu.json") -> str:
    """Every way to run a denoiser step on a CPU, side by side."""
    path = results / name
    if not path.is_file():
        return NOTHING
    return "\n".join([*speed.steps(json.loads(path.read_text(encoding="utf-8"))), ""])


def soak(results: Path) -> str:
    """Memory of both CPU backends over many pictures."""
    path = results / "soak.json"
    if not path.is_file():
        return NOTHING
    return "\n".join([*speed.looks(json.loads(path.read_text(encoding="utf-8"))), ""])


def lora(results: Path) -> str:
    """What branches for LoRAs cost on a CPU."""
    path = results / "lora.json"
    if not path.is_file():
        return NOTHING
    return "\n".join([*speed.branches(json.loads(path.read_text(encoding="utf-8"))), ""])


BLOCKS: dict[str, Callable[[Path], str]] = {
    "few": few,
    "numbers": numbers,
    "steps": steps,
    "steps_amx": lambda results: steps(results, "cpu-amx.json"),
    "soak": soak,
    "lora": lora,
}


def _machine(hardware: object) -> str:
    if not isinstance(hardware, Mapping):
        return str(hardware)
    gpu = hardware.get("gpu")
    features = hardware.get("cpu_features")
    amx = "" if features is None else f" {'with' if 'amx_bf16' in features else 'without'} AMX"
    return f"{hardware['cpu']}{amx}, {hardware['cores']} cores, {f'GPU {gpu}' if gpu else 'no GPU'}"


def rendered(page: str, results: Path) -> str:
    """A page's text with its blocks made anew.

    Raises:
        SystemExit: there is none.
    """
    found, count = BLOCK.subn(lambda block: block[1] + BLOCKS[block[2]](results) + block[4], page)
    if not count:
        raise SystemExit("the page has no block of numbers; see benchmarks/table.py")
    return found


def main() -> int:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when stale")
    parser.add_argument("--page", type=Path, nargs="+", default=PAGES)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    stale = 0
    for page in options.page:
        old = page.read_text(encoding="utf-8")
        new = rendered(old, options.results)
        if new == old:
            continue
        if options.check:
            print(f"{page.name} is stale; run: python benchmarks/table.py", file=sys.stderr)
            stale = 1
        else:
            page.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
