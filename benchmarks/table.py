"""The numbers in README.md, rendered from the results files; nothing there is typed by hand.

python benchmarks/table.py            rewrite the block between the two comments
python benchmarks/table.py --check    exit 1 when it is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- numbers: python benchmarks/table.py -->", "<!-- end of numbers -->"

Row = tuple[str, str, str]
Results = Mapping[str, Any]


def full_size(found: Results) -> Iterator[Row]:
    """FLUX.1's full size through the exporter."""
    billions = f"{found['parameters'] / 1e9:.1f} B parameters"
    targets = found.get("targets", {})
    graphs = " + ".join(f"{name} {seconds:.0f} s" for name, seconds in found["graph_seconds"].items())
    yield (
        f"Export the transformer, {billions}, bf16: both graphs",
        f"{found['graph_seconds_total']:.0f} s ({graphs})",
        _at_most(targets.get("graph_seconds_total"), "s"),
    )
    yield "the same: whole command", f"{found['wall_seconds']:.0f} s", ""
    yield (
        "the same: peak memory",
        f"{found['peak_rss_gb']:.2f} GB",
        _at_most(targets.get("peak_rss_gb"), "GB"),
    )
    linked = f"{found['checkpoint_gb']:.1f} GB of weights are hard-linked" if found["weights_linked"] else ""
    own = f"{found['bundle_own_mb_on_disk']:.1f} MB"
    yield "the same: disk that the bundle adds", f"{own}; {linked}" if linked else own, ""


def cold_start(found: Results) -> Iterator[Row]:
    """flux-run and diffusers from a process's start."""
    targets = found.get("targets", {})
    yield (
        "`flux-run --help`",
        f"{found['help_seconds']['median']:.2f} s",
        _at_most(targets.get("help_seconds"), "s"),
    )
    settings = found["settings"]
    width, height = settings["size"]
    what = f"flux-nano, {width}x{height}, {settings['steps']} steps, {settings['precision']}"
    names = (
        (
            f"{what}: process start to first PNG, median of {settings['rounds']}",
            "first_picture_seconds",
            "s",
            2,
            targets.get("first_picture_seconds"),
        ),
        ("the same: peak memory", "peak_rss_mb", "MB", 0, None),
    )
    for title, key, unit, digits, target in names:
        ours, theirs, ratio = (
            found[key][name]["median"] for name in ("flux_run", "diffusers", "diffusers_over_flux_run")
        )
        measured = (
            f"{ours:.{digits}f} {unit}; diffusers {theirs:.{digits}f} {unit} ({ratio:.1f} times as much)"
        )
        yield title, measured, _at_most(target, unit)
    pictures = found["pictures"]
    yield (
        "the same: pictures alike",
        f"{pictures['share_within_1']:.2%} of the values within 1/255, "
        f"largest difference {pictures['largest_difference']}",
        "",
    )


GOALS = {"colour": 0.95, "shape": 0.90, "place": 0.95, "background": 0.98}


def score(found: Results) -> Iterator[Row]:
    """The checker's verdicts on the exported fp32 bundle, and what was missed."""
    asked = found["settings"]
    title = f"flux-nano, exported fp32 bundle, {asked['steps']} steps, guidance {asked['guidance']:g}"
    goals = ", ".join(f"{name} {goal:.0%}" for name, goal in GOALS.items())
    for group in ("text_to_image", "one_object", "two_objects"):
        of = f"{found[group]['pictures']} unseen prompts"
        label = f"{title}: {of}" if group == "text_to_image" else f"the same: {group.replace('_', ' ')}"
        missed = [name for name, goal in GOALS.items() if found[group][name] < goal]
        verdict = f"{goals}; missed in {', '.join(missed)}" if missed else goals
        yield label, _shares(found[group]), verdict if group == "text_to_image" else ""


def fp8(found: Results) -> Iterator[Row]:
    """What fp8 costs flux-nano, and what each choice in it does."""
    target = found["targets"]["fp8_points_lost_at_most"]
    goal = f"at most {target:g} point of the marks lost"
    for row in found["rows"]:
        if row["name"] == "fp32":
            continue
        missed = "; missed" * (row["marks_lost"] > target)
        yield (
            f"flux-nano in {row['name']}",
            f"{_lost(row)}; PSNR to fp32 {row['psnr_db_median']:.1f} dB, SSIM {row['ssim_mean']:.4f}, "
            f"1 - MS-SSIM {row['ms_ssim_distance_mean']:.5f}",
            goal + missed if row["name"] == "fp8" else "",
        )
    if more := found.get("more"):
        missed = "; missed" * (more["marks_lost"] > target)
        yield f"the same in fp8, on {more['prompts']} prompts", _lost(more), goal + missed


def _lost(row: Results) -> str:
    """Marks and whole pictures against fp32, and how likely such a split is by chance."""
    return (
        f"marks {0 - row['marks_lost']:+.1f} points; pictures all right {0 - row['points_lost']:+.1f} points "
        f"({row['pictures_lost']} lost, {row['pictures_won']} won, p = {row['chance']:.2f})"
    )


def engines(found: Results) -> Iterator[Row]:
    """FP8 engines at full size, built without a GPU."""
    targets = found.get("targets", {})
    for name, engine in found["engines"].items():
        goal, again = targets.get(name), found.get("again", {}).get(name)
        yield (
            f"TensorRT-RTX engine of FLUX.1's {name} ({engine['precision']}) for sm 8.9, built without a GPU",
            f"{engine['seconds']:.0f} s, {engine['peak_gb']:.1f} GB of memory; "
            f"the plan has {engine['engine_gb']:.2f} GB"
            + (f"; {again['seconds']:.0f} s when repeated on a quiet machine" if again else ""),
            _engine_goal(engine, goal) if goal else "",
        )


def _engine_goal(engine: Results, goal: Results) -> str:
    missed = [name for name, key in (("time", "seconds"), ("memory", "peak_gb")) if engine[key] > goal[key]]
    text = f"at most {goal['seconds']} s, {goal['peak_gb']} GB"
    return f"{text}; missed in {', '.join(missed)}" if missed else text


EDITED = {"made": 0.80, "kept": 0.95}
TASKS = {
    "flowedit": "edited by FlowEdit",
    "reference": "painted after an instruction and a reference picture",
    "inpaint": "painted anew under a mask",
}


def tasks(found: Results) -> Iterator[Row]:
    """What the picture tasks do to flux-nano's pictures."""
    cases = found["settings"]["cases"]
    for name, title in TASKS.items():
        rates = found[name]
        missed = [each for each, goal in EDITED.items() if rates[each] < goal]
        goals = ", ".join(f"{each} {goal:.0%}" for each, goal in EDITED.items())
        yield (
            f"flux-nano, {cases} unseen scenes {title}",
            f"change made {rates['made']:.1%}, other marks kept {rates['kept']:.1%}, "
            f"pixels that should stay {rates['rest_psnr']:.1f} dB",
            "" if name == "inpaint" else f"{goals}; missed in {', '.join(missed)}" if missed else goals,
        )
    rates = found["image"]
    yield (
        f"flux-nano, {cases} pictures repainted at strength 0.3",
        ", ".join(f"{name} {rates[name]:.1%}" for name in ("colour", "shape", "place", "background")),
        "",
    )


def tiles(found: Results) -> Iterator[Row]:
    """Memory of the VAE's decoder, whole and in tiles."""
    peaks = {(row["side"], row["tiled"]): row["peak_mb"] for row in found["memory"]}
    whole = max(side for side, tiled in peaks if not tiled)
    tile = found["settings"]["memory_tile_px"]
    told = ", ".join(f"{side}x{side} {peak:.0f} MB" for (side, tiled), peak in sorted(peaks.items()) if tiled)
    yield (
        f"flux-nano's decoder in tiles of {tile} pixels: peak memory",
        f"{told}; in one piece {whole}x{whole} {peaks[whole, False]:.0f} MB",
        "",
    )


def _shares(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {rates[name]:.1%}" for name in (*GOALS, "all_right"))


FILES = {
    "full_size.json": full_size,
    "full_size_engines.json": engines,
    "cold_start.json": cold_start,
    "flux_nano_score.json": score,
    "tasks.json": tasks,
    "tiles.json": tiles,
    "fp8.json": fp8,
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
            made.append(f"{path.stem}: {found['date'][:10]}, {_machine(found.get('hardware'))}.")
    if not lines:
        return f"{BEGIN}\nNo results are committed yet.\n{END}"
    head = ["| what | measured | target | from |", "|---|---|---|---|"]
    return "\n".join([BEGIN, *head, *lines, "", " ".join(made), END])


def _machine(hardware: object) -> str:
    if not isinstance(hardware, Mapping):
        return str(hardware)
    gpu = hardware.get("gpu")
    return f"{hardware['cpu']}, {hardware['cores']} cores, {f'GPU {gpu}' if gpu else 'no GPU'}"


def _at_most(target: float | None, unit: str) -> str:
    return "" if target is None else f"at most {target:g} {unit}"


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
