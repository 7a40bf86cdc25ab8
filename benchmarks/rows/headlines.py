"""The README's few rows: (what, measured, beside it) of the results files that matter most to a user."""

from __future__ import annotations

from collections.abc import Iterator

from rows.pictures import GOALS
from rows.row import Results, Row


def full_size(found: Results) -> Iterator[Row]:
    """What an export at full size takes."""
    targets = found.get("targets", {})
    goals = [
        f"{targets[key]:g} {unit}"
        for key, unit in (("graph_seconds_total", "s"), ("peak_rss_gb", "GB"))
        if key in targets
    ]
    yield (
        f"Export of a transformer of FLUX.1's size, {found['parameters'] / 1e9:.1f} B parameters, bf16",
        f"{found['graph_seconds_total']:.0f} s for both graphs, {found['peak_rss_gb']:.2f} GB of memory",
        f"goal: at most {', '.join(goals)}" if goals else "",
    )


def build(found: Results) -> Iterator[Row]:
    """The memory of the plain way."""
    billions, plain = found["extrapolated"]["parameters"] / 1e9, found["extrapolated"]["plain"]
    if known := found["measured_at_full_size"].get("ours"):
        yield (
            f"Memory of an export at {billions:.1f} B",
            f"{known['peak_gb']:.1f} GB",
            f"plain `torch.onnx.export`: {plain['peak_gb']:.0f} GB, by a straight line through smaller ones",
        )


def engines(found: Results) -> Iterator[Row]:
    """TensorRT engines without a GPU."""
    built = found["engines"]
    once = [engine for name, engine in built.items() if "," not in name]  # not the second of one stage
    seconds, size = (sum(engine[key] for engine in once) for key in ("seconds", "engine_gb"))
    largest = max(engine["peak_gb"] for engine in once)
    yield (
        f"TensorRT-RTX engines of all {len(once)} stages at FLUX.1's size, fp8 and bf16, built without a GPU",
        f"{seconds:.0f} s, {largest:.1f} GB of memory; {size:.1f} GB of plans",
        "",
    )


def cold_start(found: Results) -> Iterator[Row]:
    """From a process's start."""
    settings = found["settings"]
    size = f"{settings['size'][0]}x{settings['size'][1]}"
    for title, key, unit, digits in (
        (f"Process start to first picture, flux-nano, {size}", "first_picture_seconds", "s", 2),
        ("the same: peak memory", "peak_rss_mb", "MB", 0),
    ):
        ours, theirs = (found[key][name]["median"] for name in ("flux_run", "diffusers"))
        yield title, f"{ours:.{digits}f} {unit}", f"diffusers: {theirs:.{digits}f} {unit}"


def run(found: Results) -> Iterator[Row]:
    """The fastest of ours beside the others, in the same rounds."""
    for case in found["cases"]:
        times = {painter["name"]: painter["picture_ms"]["p50"] for painter in case["painters"]}
        ours = {name: each for name, each in times.items() if name.startswith("flux_trt/")}
        others = ", ".join(f"{name} {each:.0f} ms" for name, each in times.items() if name not in ours)
        if ours:
            best = min(ours, key=lambda name: ours[name])
            yield (
                f"A picture of {found['about']['bundle']['name']}, {case['steps']} steps, on a CPU"
                + ", noisy machine" * found["noisy"],
                f"{ours[best]:.0f} ms with {best.removeprefix('flux_trt/')}",
                others,
            )


def cpu(found: Results) -> Iterator[Row]:
    """A step of the larger of the transformers that were timed."""
    size = max(found["sizes"].values(), key=lambda each: each["parameters"])
    times, best = {row["name"]: row["ms_per_step"] for row in size["rows"]}, size["best_of_ours"]["fp32"]
    others = [
        f"{name.removesuffix(', fp32')} {each:.0f} ms"
        for name, each in times.items()
        if name.endswith("fp32") and not name.startswith("ours")
    ]
    millions = size["parameters"] / 1e6
    yield (
        f"A step of a transformer of {millions:.0f} M, {size['tokens']} tokens, fp32, on a CPU",
        f"{times[best]:.0f} ms with {best.split(', ')[1]}",
        "; ".join(others),
    )


def score(found: Results) -> Iterator[Row]:
    """The checker's verdict on flux-nano."""
    all_of, one, two = (found[key]["all_right"] for key in ("text_to_image", "one_object", "two_objects"))
    missed = [name for name, goal in GOALS.items() if found["text_to_image"][name] < goal]
    yield (
        f"flux-nano's pictures without any fault, {found['text_to_image']['pictures']} unseen prompts",
        f"{all_of:.1%}; with one object {one:.1%}, with two {two:.1%}",
        f"its goals are missed in {', '.join(missed)}" if missed else "its goals are reached",
    )


def tasks(found: Results) -> Iterator[Row]:
    """Edits of unseen scenes."""
    told = [
        f"{name}: made {found[key]['made']:.0%}, rest kept {found[key]['kept']:.0%}"
        for key, name in (("flowedit", "FlowEdit"), ("reference", "reference picture"))
    ]
    yield (
        f"flux-nano's edits of {found['settings']['cases']} unseen scenes",
        "; ".join(told),
        "goal: made 80%, rest kept 95%",
    )


def fp8(found: Results) -> Iterator[Row]:
    """What fp8 costs."""
    target = found["targets"]["fp8_points_lost_at_most"]
    if row := found.get("more") or next((row for row in found["rows"] if row["name"] == "fp8"), None):
        on = f", {row['prompts']} prompts" if "prompts" in row else ""
        marks, whole = 0 - row["marks_lost"], 0 - row["points_lost"]
        yield (
            f"What fp8 costs flux-nano{on}: points of what the checker marks",
            f"{marks:+.1f} points; pictures without any fault {whole:+.1f} points",
            f"goal: at most {target:g} lost",
        )
