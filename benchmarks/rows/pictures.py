"""How good the pictures are: of captions, of edits, in eight bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rows.row import Results, Row

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


def loras(found: Results) -> Iterator[Row]:
    """Without a LoRA, and with it."""
    for name, group in found["groups"].items():
        without, with_it = (group[each]["all_right"] for each in ("without", "with"))
        yield (
            f"flux-nano with a LoRA at run time, {group['with']['pictures']} unseen prompts: {name}",
            f"{with_it:.1%} all right; without it {without:.1%}",
            "",
        )


def taught(found: Results) -> Iterator[str]:
    """Lines of a table: each group of prompts, without and with."""
    marks = ("colour", "shape", "place", "all_right")
    yield " | ".join(["| prompts", "", *(name.replace("_", " ") for name in marks)]) + " |"
    yield "|---" * (len(marks) + 2) + "|"
    for name, group in found["groups"].items():
        for which in ("without", "with"):
            shares = (f"{group[which][mark]:.0%}" for mark in marks)
            yield " | ".join([f"| {name if which == 'without' else ''}", which, *shares]) + " |"


EDITED = {"made": 0.80, "kept": 0.95}
TASKS = {
    "flowedit": "edited by FlowEdit",
    "reference": "painted after an instruction and a reference picture",
    "inpaint": "painted anew under a mask",
    "fill": "painted anew under a mask by flux-nano-fill",
}
JUDGED = ("flowedit", "reference")  # what the goals are for
AS_ASKED = {
    "image": "pictures repainted at strength 0.3",
    "control": "pictures painted by flux-nano-canny after edges and captions without places",
}


def tasks(found: Results) -> Iterator[Row]:
    """What the picture tasks do to flux-nano's pictures."""
    cases = found["settings"]["cases"]
    for name, title in TASKS.items():
        rates, goals = found[name], ""
        if name in JUDGED:
            missed = [each for each, goal in EDITED.items() if rates[each] < goal]
            goals = ", ".join(f"{each} {goal:.0%}" for each, goal in EDITED.items())
            goals += f"; missed in {', '.join(missed)}" if missed else ""
        yield (
            f"flux-nano, {cases} unseen scenes {title}",
            f"change made {rates['made']:.1%}, other marks kept {rates['kept']:.1%}, "
            f"pixels that should stay {rates['rest_psnr']:.1f} dB",
            goals,
        )
    for name, title in AS_ASKED.items():
        yield f"flux-nano, {cases} {title}", _shares(found[name]), ""


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


def fp8_qdq(found: Results) -> Iterator[Row]:
    """Q/DQ pairs as they stand beside onnxruntime's fusions of them, and which versions load what."""
    ours, *others = found["rows"]
    against = ", ".join(f'{row["ours_times_as_fast"]:.2f} times as fast as "{row["name"]}"' for row in others)
    yield (
        f"flux-nano in fp8 on onnxruntime's CPU, Q/DQ {ours['name']}",
        f"{1000 * ours['picture_seconds']['median']:.0f} ms a picture, {against}; "
        f"marks -{ours['marks_lost']:.1f} points, PSNR to fp32 {ours['psnr_db_median_to_fp32']:.1f} dB; "
        f'"{others[-1]["name"]}" -{others[-1]["marks_lost"]:.1f} points, '
        f"{others[-1]['psnr_db_median_to_fp32']:.1f} dB",
        "",
    )
    tried: dict[bool, list[str]] = {True: [], False: []}
    for row in found["versions_tried"]:
        if row["setting"] == ours["name"]:
            tried[row["loads"]].append(row["onnxruntime"])
    yield (
        "the same with other versions of onnxruntime",
        "; ".join(
            f"{'loads' if good else 'fails'} with {', '.join(names)}"
            for good, names in tried.items()
            if names
        ),
        "loads with each",
    )


def solver(found: Results) -> Iterator[Row]:
    """Distance to the exact picture against runs, for both solvers."""
    rows = {(row["solver"], row["runs"]): row for row in found["rows"]}
    for name in dict.fromkeys(row["solver"] for row in found["rows"]):
        told = ", ".join(
            f"{runs}: {row['psnr_db_median']:.1f}" for (solver, runs), row in rows.items() if solver == name
        )
        yield (
            f"flux-nano, --solver {name}: PSNR to the exact picture after so many runs of the denoiser",
            f"{told} dB",
            "",
        )
    first, second = (rows[each["solver"], each["runs"]] for each in found["held_to"])
    yield (
        "the same, what the checker calls all right (it prefers coarse solutions and cannot judge a solver)",
        f"{first['solver']} {first['runs']}: {first['checker_all_right']:.1%}, "
        f"{second['solver']} {second['runs']}: {second['checker_all_right']:.1%}, "
        f"exact {found['exact_checker_all_right']:.1%}",
        "",
    )


def _lost(row: Results) -> str:
    """Marks and whole pictures against fp32, and how likely such a split is by chance."""
    return (
        f"marks {0 - row['marks_lost']:+.1f} points; pictures all right {0 - row['points_lost']:+.1f} points "
        f"({row['pictures_lost']} lost, {row['pictures_won']} won, p = {row['chance']:.2f})"
    )


def _shares(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {rates[name]:.1%}" for name in (*GOALS, "all_right"))
