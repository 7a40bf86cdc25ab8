"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from flux_trt.bench.compare import Verdict
from flux_trt.bench.schema import About, Case, Painter, Result, Roofline, Run, Scaling, Series

NONE = "-"
PAINTER = ["painter", "p50 ms", "p90 ms", "p99 ms", "min ms", "mean ms", "spread", "pictures/s"]
PAINTER += ["times as fast", "PSNR dB", "score"]
START = ["start", "cold s", "of it load s", "of it convert s", "warm s", "peak RSS MB", "GPU MB", "MB loaded"]
ROOF = ["stage", "GFLOP", "MB at least", "MB unfused", "compute ms", "memory ms", "time ms", "ceiling"]
ROOF += ["achieved"]


def markdown(found: Result) -> str:
    """A results file as a section."""
    parts = {Run: _run, Roofline: _roofline, Scaling: _scaling}[type(found)]
    return "\n".join([*parts(found), "", header(found.about)])  # type: ignore[operator]


def header(about: About) -> str:
    """How the numbers were made."""
    machine, bundle = about.hardware, about.bundle
    gpu = NONE
    if machine.gpu:
        limit = "" if machine.power_limit_w is None else f", {machine.power_limit_w:g} W"
        gpu = f"{machine.gpu}, driver {machine.driver}{limit}"
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items() if version)
    precision = ", ".join(f"{stage} {kind}" for stage, kind in about.bundle.precision.items())
    return table(
        ["made", ""],
        [
            ["date", about.date],
            ["command", f"`{about.command}`"],
            ["bundle", f"{bundle.name} ({bundle.variant}), {bundle.digest[:12]}; {precision}"],
            ["CPU", f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB"],
            ["GPU", gpu],
            ["load before", f"{about.load_average:g}"],
            ["versions", f"Python {about.python}, {versions}"],
        ],
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    marks = "|".join(["---", *("---:" if len(head) > 2 else "---" for _ in head[1:])])
    return "\n".join(["| " + " | ".join(head) + " |", f"|{marks}|", *lines])


def verdicts(found: Sequence[Verdict]) -> str:
    """A comparison."""
    rows = []
    for each in found:
        between = NONE if each.interval is None else f"{each.interval[0]:.3f} to {each.interval[1]:.3f}"
        ratio = NONE if each.ratio is None else f"{each.ratio:.3f}"
        said = "REGRESSION" if each.regression else "ok"
        what = f"{each.case}: {each.painter}, {each.what}"
        rows.append([what, f"{each.a:.4g}", f"{each.b:.4g}", ratio, between, said])
    return table(["what", "A", "B", "B / A", "99 % interval", "verdict"], rows)


def _run(found: Run) -> Iterator[str]:
    if found.noisy:
        yield (
            f"**Noisy**: a spread was wider than {found.spread_limit:.0%}; these are no figures to quote.\n"
        )
    for case in found.cases:
        yield f"### {title(case)}\n"
        yield table(
            PAINTER,
            [_painter(each) for each in case.painters],
        )
        yield ""
        if started := [each for each in case.painters if each.start]:
            yield table(
                START,
                [_start(each) for each in started],
            )
            yield ""
        for each in case.painters:
            if each.stages_ms:
                yield table(
                    [f"{each.name}, ms", "n", "p50", "p90", "p99", "min", "mean", "spread"], _stages(each)
                )
                yield ""


def title(case: Case) -> str:
    """A case in words."""
    guidance = "" if case.guidance is None else f", guidance {case.guidance:g}"
    threads = "" if case.threads is None else f", {case.threads} threads"
    return (
        f"{case.width}x{case.height}, {case.steps} steps, batch {case.batch}, "
        f"{case.text_tokens} text tokens{guidance}{threads}"
    )


def _painter(each: Painter) -> list[str]:
    took, quality = each.picture_ms, each.quality
    faster = "1 (baseline)"
    if each.faster:
        faster = f"{each.faster.median:.2f} ({each.faster.p25:.2f} to {each.faster.p75:.2f})"
    figures = [took.p50, took.p90, took.p99, took.min, took.mean]
    return [
        each.name,
        *(f"{value:.1f}" for value in figures),
        f"{took.spread:.1%}",
        f"{each.pictures_per_second:.2f}",
        faster,
        NONE if quality.psnr_db_median is None else f"{quality.psnr_db_median:.1f}",
        NONE if quality.score is None else f"{quality.score:.1%} of {quality.pictures}",
    ]


def _start(each: Painter) -> list[str]:
    start = each.start
    assert start
    times = (start.cold_s, start.load_s, start.convert_s, start.warm_s)
    device = NONE if start.peak_device_mb is None else f"{start.peak_device_mb:.0f}"
    return [
        each.name,
        *(f"{series.p50:.2f}" for series in times),
        f"{start.peak_rss_mb:.0f}",
        device,
        f"{start.bytes_loaded / 1e6:.1f}",
    ]


def _stages(each: Painter) -> Iterator[list[str]]:
    rows: list[tuple[str, Series | None]] = [*(each.stages_ms or {}).items()]
    rows += [("host between steps", each.between_steps_ms), ("host, whole batch", each.outside_ms)]
    for name, series in rows:
        if series:
            figures = (series.p50, series.p90, series.p99, series.min, series.mean)
            yield [name, str(series.n), *(f"{value:.3f}" for value in figures), f"{series.spread:.1%}"]


def _roofline(found: Roofline) -> Iterator[str]:
    rates = ", ".join(
        f"{dtype} {rate:.0f} GFLOP/s ({found.ceilings.measured_with[dtype]})"
        for dtype, rate in found.ceilings.matrix_gflops.items()
    )
    size = f"{found.width}x{found.height}, batch {found.batch}"
    if found.noisy:
        yield "**Noisy**: a stage beat the measured matrix rate; these are no figures to quote.\n"
    yield f"### Roofline: {found.backend} on {found.device}, {size}\n"
    yield f"Measured ceilings: {rates}; copy {found.ceilings.copy_gbs:.1f} GB/s.\n"
    rows = []
    for each in found.stages:
        count = each.count
        moved = (count.weight_bytes + count.io_bytes) / 1e6
        rows.append(
            [
                each.name,
                f"{(count.matrix_flops + count.other_flops) / 1e9:.3f}",
                f"{moved:.2f}",
                f"{count.unfused_bytes / 1e6:.2f}",
                f"{each.compute_ms:.3f}",
                f"{each.memory_ms:.3f}",
                NONE if each.time_ms is None else f"{each.time_ms:.3f}",
                f"{each.bound} ({each.dtype})",
                NONE if each.fraction is None else f"{each.fraction:.0%}",
            ]
        )
    yield table(
        ROOF,
        rows,
    )


def _scaling(found: Scaling) -> Iterator[str]:
    yield f"### Scaling: {found.backend} on {found.device}\n"
    rows = []
    for curve in found.curves:
        fixed = ", ".join(f"{name} {value}" for name, value in curve.fixed.items())
        points = ", ".join(f"{point.x}: {point.ms:.1f}" for point in curve.points)
        power = NONE if curve.exponent is None else f"{curve.exponent:.2f}"
        rows.append(
            [f"{curve.over} ({fixed})", points, power, NONE if curve.r2 is None else f"{curve.r2:.3f}"]
        )
    yield table(["over (fixed)", "ms", "exponent", "R²"], rows)
    for curve in found.curves:
        if curve.stopped:
            yield f"\n{curve.over} stops: {curve.stopped}."
