"""The plots of a report, each as the text of an SVG picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib

from flux_trt.bench.schema import Case, Roofline, Scaling, Series

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

COLOURS = ("#0b6e99", "#e07a1f", "#4a8f3c", "#a23b72", "#6c5ce7", "#7f7f7f", "#b8860b")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "flux-bench",
    "svg.fonttype": "none",  # text stays text: a page of a third of the size
    "axes.prop_cycle": cycler(color=COLOURS),
}
Plot = Callable[[Any], None]


def svg(width: float, height: float, draw: Plot) -> str:
    """What `draw` puts on a figure of that size in inches."""
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]


def latency(case: Case) -> str:
    """Whole pictures: every sample, and the median."""

    def draw(axes: Any) -> None:
        names = [each.name for each in case.painters][::-1]
        for row, each in enumerate(reversed(case.painters)):
            colour = COLOURS[(len(names) - 1 - row) % len(COLOURS)]
            axes.barh(row, each.picture_ms.p50, height=0.55, color=colour, alpha=0.35)
            axes.plot(each.picture_ms.samples, [row] * each.picture_ms.n, "|", color=colour, markersize=11)
            axes.annotate(
                f" {each.picture_ms.p50:.4g}",
                (max(each.picture_ms.samples), row),
                va="center",
                xytext=(4, 0),
                textcoords="offset points",
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("ms per batch: bar = median, ticks = samples")
        axes.set_xlim(0, max(max(each.picture_ms.samples) for each in case.painters) * 1.15)
        axes.grid(axis="y", visible=False)

    return svg(7.2, 0.9 + 0.42 * len(case.painters), draw)


def breakdown(case: Case) -> str | None:
    """Where a picture's time goes, stage by stage: the medians, times how often each stage runs."""
    profiled = [each for each in case.painters if each.stages_ms and each.outside_ms]
    if not profiled:
        return None
    stages = list(profiled[0].stages_ms or {})
    widest = max(each.picture_ms.p50 for each in profiled)

    def draw(axes: Any) -> None:
        for row, each in enumerate(reversed(profiled)):
            left, parts = 0.0, []
            assert each.stages_ms
            assert each.outside_ms
            for stage in stages:
                series = each.stages_ms[stage]
                times = series.n / each.outside_ms.n
                parts.append((stage, series.p50 * times, f" x {times:g}" if times != 1 else ""))
            parts.append(("host", each.outside_ms.p50, ""))
            whole = sum(ms for _, ms, _ in parts)
            for index, (stage, ms, often) in enumerate(parts):
                label = f"{stage}{often}" if row == 0 else None
                axes.barh(row, ms, left=left, height=0.55, color=COLOURS[index % len(COLOURS)], label=label)
                if ms > 0.06 * widest:
                    axes.text(
                        left + ms / 2, row, f"{ms / whole:.0%}", ha="center", va="center", color="white"
                    )
                left += ms
        axes.set_yticks(range(len(profiled)), [each.name for each in reversed(profiled)])
        axes.set_xlabel("ms per batch (medians of the profiled runs)")
        axes.grid(axis="y", visible=False)
        axes.figure.legend(loc="outside lower center", ncols=6, frameon=False)

    return svg(7.2, 1.7 + 0.42 * len(profiled), draw)


def steps(case: Case) -> str | None:
    """Histogram of denoiser steps."""
    series: dict[str, Series] = {each.name: each.step_ms for each in case.painters if each.step_ms}
    if not series:
        return None

    def draw(axes: Any) -> None:
        everything = [value for each in series.values() for value in each.samples]
        low, most = min(everything), 1.25 * max(each.p99 for each in series.values())
        beyond, high = sum(value > most for value in everything), min(max(everything), most)
        count = min(max(len(everything) // 4, 8), 40)
        edges = [low + (high - low) * k / count for k in range(count + 1)] if high > low else count
        for index, (name, each) in enumerate(series.items()):
            colour = COLOURS[index % len(COLOURS)]
            axes.hist(each.samples, bins=edges, alpha=0.55, color=colour, label=name)
            for value, style in ((each.p50, "-"), (each.p90, "--"), (each.p99, ":")):
                axes.axvline(value, color=colour, linestyle=style, linewidth=1.2)
        left_out = f"; {beyond} steps are further right" if beyond else ""
        axes.set_xlabel(f"ms per denoiser step; lines: p50 solid, p90 dashed, p99 dotted{left_out}")
        axes.set_ylabel("steps")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)

    return svg(7.2, 2.8, draw)


def quality(case: Case) -> str | None:
    """Quality against latency: a fast wrong answer falls."""
    by_score = any(each.quality.score is not None for each in case.painters)
    points, colours = [], {each.name: COLOURS[k % len(COLOURS)] for k, each in enumerate(case.painters)}
    for each in case.painters:
        value = each.quality.score if by_score else each.quality.psnr_db_median
        if value is not None:
            points.append((each.name, each.picture_ms.p50, 100 * value if by_score else value))
    if not points:
        return None

    def draw(axes: Any) -> None:
        for name, ms, value in points:
            axes.plot(ms, value, "o", markersize=8, color=colours[name], alpha=0.8, label=name)
        axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)
        axes.set_xlim(0, max(point[1] for point in points) * 1.1)
        values = [point[2] for point in points]
        axes.set_ylim(min(values) - 9, max(values) + 9)  # points, or dB
        axes.set_xlabel("ms per batch, median")
        axes.set_ylabel("pictures all right, %" if by_score else "PSNR to diffusers, dB")

    return svg(7.2, 3.0, draw)


def roofline(found: Roofline) -> str:
    """Stages under the ceilings, both axes logarithmic."""

    def draw(axes: Any) -> None:
        copy = found.ceilings.copy_gbs
        flops = {each.name: each.count.matrix_flops + each.count.other_flops for each in found.stages}
        moved = {each.name: each.count.weight_bytes + each.count.io_bytes for each in found.stages}
        dense = {name: flops[name] / moved[name] for name in flops}
        best = max(found.ceilings.matrix_gflops.values())
        low, high = min(*dense.values(), 0.5 * best / copy) / 2, max(*dense.values(), best / copy) * 3
        for index, (dtype, rate) in enumerate(found.ceilings.matrix_gflops.items()):
            style = ("-", "--", ":")[index % 3]
            axes.plot(
                [low, rate / copy, high], [low * copy, rate, rate], style, color="#444444", linewidth=1.3
            )
            axes.annotate(
                f"{dtype}: {rate:.0f} GFLOP/s",
                (high, rate),
                ha="right",
                xytext=(0, 4),
                textcoords="offset points",
            )
        middle = (low * best / copy) ** 0.5
        axes.annotate(
            f"{copy:.1f} GB/s", (middle, middle * copy), xytext=(6, -10), textcoords="offset points"
        )
        for index, each in enumerate(found.stages):
            if each.time_ms:
                reached, colour = flops[each.name] / each.time_ms / 1e6, COLOURS[index % len(COLOURS)]
                label = f"{each.name}: {each.fraction:.0%}"
                axes.plot(dense[each.name], reached, "o", color=colour, markersize=7, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain(axes.xaxis)
        _plain(axes.yaxis)
        axes.set_xlabel("FLOP per byte (weights, inputs and outputs once)")
        axes.set_ylabel("GFLOP/s")
        axes.legend(loc="lower right", title="achieved of the ceiling", frameon=False)

    return svg(7.2, 4.0, draw)


def curves(found: Scaling) -> Iterator[tuple[str, str]]:
    """(what grows, its curve)."""
    for curve in found.curves:
        if len(curve.points) < 2:
            continue
        fitted = "" if curve.exponent is None else f": exponent {curve.exponent:.2f}, R² {curve.r2:.3f}"
        text = f"{curve.over}{fitted}"

        def draw(axes: Any, curve: Any = curve, text: str = text) -> None:
            x, y = [point.x for point in curve.points], [point.ms for point in curve.points]
            axes.plot(x, y, "o-", color=COLOURS[0])
            if 0 not in x:
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
                _plain(axes.yaxis)
                axes.xaxis.set_minor_formatter(NullFormatter())
            else:
                axes.set_ylim(0)
            axes.set_xticks(x, [str(value) for value in x], fontsize=8)
            axes.set_xlabel(curve.over)
            axes.set_ylabel("ms per picture's loop" if curve.over == "steps" else "ms per denoiser step")
            axes.set_title(text, fontsize=9, loc="left")

        yield curve.over, svg(3.5, 2.7, draw)


def _plain(axis: Any) -> None:
    """1, 2, 5, 10 ... as plain numbers on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
