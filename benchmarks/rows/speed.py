"""Time and memory of painting, beside the alternatives."""

from __future__ import annotations

from collections.abc import Iterator

from rows.row import Results, Row, at_most


def cold_start(found: Results) -> Iterator[Row]:
    """flux-run and diffusers from a process's start."""
    targets = found.get("targets", {})
    yield (
        "`flux-run --help`",
        f"{found['help_seconds']['median']:.2f} s",
        at_most(targets.get("help_seconds"), "s"),
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
        yield title, measured, at_most(target, unit)
    pictures = found["pictures"]
    yield (
        "the same: pictures alike",
        f"{pictures['share_within_1']:.2%} of the values within 1/255, "
        f"largest difference {pictures['largest_difference']}",
        "",
    )


def run(found: Results) -> Iterator[Row]:
    """Every painter of `flux-bench run`, in the same rounds."""
    for case in found["cases"]:
        size = f"{case['width']}x{case['height']}, {case['steps']} steps"
        title = f"{found['about']['bundle']['name']}, {size}" + ", noisy machine" * found["noisy"]
        for painter in case["painters"]:
            took, faster, quality = painter["picture_ms"], painter["faster"], painter["quality"]
            told = [f"{took['p50']:.1f} ms a picture (spread {took['spread']:.0%})"]
            if faster:
                quartiles = f"{faster['p25']:.2f} to {faster['p75']:.2f}"
                told.append(f"{faster['median']:.2f} times as fast as {faster['baseline']} ({quartiles})")
            if quality["psnr_db_median"] is not None:
                told.append(f"PSNR to it {quality['psnr_db_median']:.1f} dB")
            if quality["score"] is not None:
                told.append(f"{quality['score']:.1%} of {quality['pictures']} all right")
            yield f"{title}: {painter['name']}", "; ".join(told), ""


def roofline(found: Results) -> Iterator[Row]:
    """Each stage's share of the nearer ceiling."""
    told = ", ".join(
        f"{stage['name']} {stage['fraction']:.0%} ({stage['bound']})"
        for stage in found["stages"]
        if stage["fraction"] is not None
    )
    ceilings = found["ceilings"]
    rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in ceilings["matrix_gflops"].items())
    yield (
        f"the same on {found['backend']}: share of the nearer ceiling",
        f"{told}; ceilings: matrix products {rates} GFLOP/s, copies {ceilings['copy_gbs']:.1f} GB/s",
        "",
    )


def scaling(found: Results) -> Iterator[Row]:
    """Exponents of the fitted curves."""
    told = ", ".join(
        f"{curve['over']} {curve['points'][0]['x']} to {curve['points'][-1]['x']}: {curve['exponent']:.2f}"
        for curve in found["curves"]
        if curve["exponent"] is not None
    )
    yield f"the same on {found['backend']}: time grows with the power of", told, ""


def cpu(found: Results) -> Iterator[Row]:
    """The transformer alone on a CPU: the better of ours over each peer."""
    amx = " with AMX" * ("amx_bf16" in (found["hardware"].get("cpu_features") or ()))
    for name, size in found["sizes"].items():
        best = size["best_of_ours"]
        times = {row["name"]: row["ms_per_step"] for row in size["rows"]}
        title = f"{name}: transformer of {size['parameters'] / 1e6:.0f} M, {size['tokens']} tokens, on a CPU{amx}"
        for precision in ("fp32", "bf16"):
            mine = best[precision]
            against = ", ".join(
                f"{ratio:.2f} times as fast as {pair.removeprefix(f'{mine} over ')}"
                for pair, ratio in size["times_as_fast"].items()
                if pair.startswith(f"{mine} over ")
            )
            slower = [
                pair.removeprefix(f"{mine} over ")
                for pair, ratio in size["times_as_fast"].items()
                if pair.startswith(f"{mine} over ") and ratio < 1
            ]
            yield (
                f"{title}: {mine}",
                f"{times[mine]:.1f} ms a step; {against}",
                "faster than each" + (f"; missed against {', '.join(slower)}" if slower else ""),
            )


def steps(found: Results) -> Iterator[str]:
    """Lines of a table: each way to run the transformer on a CPU, milliseconds a step at each size."""
    sizes = found["sizes"]
    heads = [
        f"{name}: {size['parameters'] / 1e6:.0f} M, {size['tokens']} tokens" for name, size in sizes.items()
    ]
    yield " | ".join(["| ms a step", *heads, "PSNR of the latents |"])
    yield "|---" * (len(heads) + 2) + "|"
    ways = {name: {row["name"]: row for row in size["rows"]} for name, size in sizes.items()}
    for way in next(iter(ways.values())):
        rows = [ways[name][way] for name in sizes]
        best = [way in sizes[name]["best_of_ours"].values() for name in sizes]
        cells = [
            f"**{row['ms_per_step']:.1f}**" if bold else f"{row['ms_per_step']:.1f}"
            for row, bold in zip(rows, best, strict=True)
        ]
        exact = all(row["largest_difference"] == 0 for row in rows)
        distances = sorted({f"{row['psnr_db']:.0f}" for row in rows}, key=float)
        yield " | ".join(
            [f"| {way}", *cells, "the reference |" if exact else f"{' to '.join(distances)} dB |"]
        )


def soak(found: Results) -> Iterator[Row]:
    """Memory over pictures of random sizes, and what the bound on OpenVINO's cache costs."""
    sizes, again = found["settings"]["different_sizes"], found["again"]
    for way, told in found["ways"].items():
        looks = told["after_pictures_mb"]
        on_the_way = ", ".join(f"{number}: {megabytes:.0f}" for number, megabytes in looks.items())
        yield (
            f"Memory with {way}, in MB after so many pictures of {sizes} random sizes",
            f"loaded {told['loaded_mb']:.0f}; {on_the_way}; closed {told['closed_mb']:.0f}",
            "",
        )
    yield (
        f"The bound on OpenVINO's cache where {again['sizes']} sizes come again",
        f"{again['bounded_times_as_fast']:.2f} times as fast as without",
        "",
    )


def lora(found: Results) -> Iterator[Row]:
    """What LoRAs at run time cost on a CPU."""
    for size in found["sizes"].values():
        of = f"of {size['parameters'] / 1e6:.0f} M parameters and {size['tokens']} tokens"
        for row in size["rows"]:
            if row["way"] != "plain":
                yield (
                    f"A denoiser step {of} with {row['way']}, {row['backend']}",
                    f"{row['times_as_long_as_plain']:.2f} times as long as a plain one",
                    "",
                )
        swaps = ", ".join(
            f"{way} {1e3 * each['median']:.0f} ms" for way, each in size["swap_seconds"].items()
        )
        yield (
            f"Another LoRA {of} at run time",
            swaps,
            f"merged at build: {size['merge_seconds']:.0f} s",
        )


def branches(found: Results) -> Iterator[str]:
    """Lines of a table: a step with branches over a plain one, and a swap, each way a line."""
    sizes, rows = found["sizes"], {}
    for name, size in sizes.items():
        for row in size["rows"]:
            rows.setdefault(row["way"], {})[name, row["backend"]] = row["times_as_long_as_plain"]
    columns = list(next(iter(rows.values())))
    heads = [f"{sizes[name]['parameters'] / 1e6:.0f} M, {backend}" for name, backend in columns]
    swaps = [f"swap, {size['parameters'] / 1e6:.0f} M" for size in sizes.values()]
    yield " | ".join(["| a step with", *heads, *swaps]) + " |"
    yield "|---" * (1 + len(heads) + len(swaps)) + "|"
    for way, told in rows.items():
        if way != "plain":
            times = [f"{told[column]:.2f}" for column in columns]
            took = [size["swap_seconds"].get(way) for size in sizes.values()]
            yield (
                " | ".join([f"| {way}", *times, *(f"{1e3 * t['median']:.0f} ms" if t else "" for t in took)])
                + " |"
            )


def looks(found: Results) -> Iterator[str]:
    """Lines of a table: memory in MB after so many pictures, each way a line."""
    ways = found["ways"]
    numbers = list(next(iter(ways.values()))["after_pictures_mb"])
    yield " | ".join(["| pictures", "loaded", *numbers, "closed |"])
    yield "|---" * (len(numbers) + 3) + "|"
    for way, told in ways.items():
        middle = [f"{told['after_pictures_mb'][number]:.0f}" for number in numbers]
        yield " | ".join([f"| {way}", f"{told['loaded_mb']:.0f}", *middle, f"{told['closed_mb']:.0f} |"])


def ladder(found: Results) -> Iterator[Row]:
    """What each idea of the export brought, a rung over the one before."""
    for name, size in found["sizes"].items():
        first, *rungs = [row for row in size["rungs"] if "seconds" in row]
        told = "; ".join(f"{row['name']} x{row['gain']:.2f}" for row in rungs)
        yield (
            f"{name}: from the {first['name']}, {first['ms_per_step']:.1f} ms a step",
            f"{told}; {rungs[-1]['gain_over_naive']:.2f} times as fast in all",
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
