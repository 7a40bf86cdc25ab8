"""What building costs: graphs, engines, and the plain export beside."""

from __future__ import annotations

from collections.abc import Iterator

from rows.row import Results, Row, at_most


def full_size(found: Results) -> Iterator[Row]:
    """FLUX.1's full size through the exporter."""
    billions = f"{found['parameters'] / 1e9:.1f} B parameters"
    targets = found.get("targets", {})
    graphs = " + ".join(f"{name} {seconds:.0f} s" for name, seconds in found["graph_seconds"].items())
    yield (
        f"Export the transformer, {billions}, bf16: both graphs",
        f"{found['graph_seconds_total']:.0f} s ({graphs})",
        at_most(targets.get("graph_seconds_total"), "s"),
    )
    yield "the same: whole command", f"{found['wall_seconds']:.0f} s", ""
    yield (
        "the same: peak memory",
        f"{found['peak_rss_gb']:.2f} GB",
        at_most(targets.get("peak_rss_gb"), "GB"),
    )
    linked = f"{found['checkpoint_gb']:.1f} GB of weights are hard-linked" if found["weights_linked"] else ""
    own = f"{found['bundle_own_mb_on_disk']:.1f} MB"
    yield "the same: disk that the bundle adds", f"{own}; {linked}" if linked else own, ""


def full_size_of(family: str, found: Results) -> Iterator[Row]:
    """A family's full sizes through the exporter."""
    for member, one in found["members"].items():
        counts = " + ".join(f"{name} {count / 1e9:.1f} B" for name, count in one["parameters"].items())
        graphs = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in one["graph_seconds"].items())
        nodes = ", ".join(str(one["nodes"][name]) for name in one["graph_seconds"])
        yield (
            f"Export {family} {member.replace('-', ' ')}, {counts} parameters, bf16",
            f"{one['wall_seconds']:.0f} s ({one['cpu_seconds']:.0f} s of CPU) "
            f"with hashing {one['checkpoint_gb']:.1f} GB "
            f"({graphs}; {nodes} nodes), "
            f"{one['peak_rss_gb']:.2f} GB of memory; the bundle adds {one['bundle_own_mb_on_disk']:.1f} MB",
            "",
        )


def engines_of(family: str, found: Results) -> Iterator[Row]:
    """FP8 engines of a family at full size, built without a GPU."""
    for member, one in found["members"].items():
        for name, engine in one["engines"].items():
            yield (
                f"TensorRT-RTX engine of {family} {member.replace('-', ' ')}'s {name} (fp8) for sm 8.9, "
                "built without a GPU",
                f"not built: {engine['fault']}"
                if "fault" in engine
                else f"{engine['seconds']:.0f} s, {engine['peak_gb']:.1f} GB of memory; "
                f"the plan has {engine['engine_gb']:.2f} GB",
                "",
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


def build(found: Results) -> Iterator[Row]:
    """The plain export's memory, measured where it still fits, and the straight line to full size."""
    plain = found["extrapolated"]["plain"]
    sizes = "; ".join(
        f"{size['parameters'] / 1e9:.2f} B: {size['plain']['peak_gb']:.1f} GB in "
        f"{size['plain']['seconds']:.0f} s, ours {size['ours']['peak_gb']:.1f} GB in "
        f"{size['ours']['seconds']:.0f} s"
        for size in found["sizes"].values()
    )
    yield "Plain `torch.onnx.export` of diffusers' transformer, bf16: peak memory and time", sizes, ""
    known = found["measured_at_full_size"].get("ours")
    yield (
        f"the same at {found['extrapolated']['parameters'] / 1e9:.1f} B, a straight line through these",
        f"{plain['peak_gb']:.0f} GB" + (f"; ours, measured, {known['peak_gb']:.1f} GB" if known else ""),
        "",
    )


def decode(found: Results) -> Iterator[Row]:
    """Quantised checkpoints of FLUX.1's size, decoded one tensor at a time."""
    for name, made in found["formats"].items():
        yield (
            f"Denoiser in bf16 from a checkpoint of FLUX.1's size in {name}, {made['checkpoint_gb']:.1f} GB",
            f"{made['peak_rss_gb']:.2f} GB of memory; {made['denoiser_seconds']:.0f} s; "
            f"{made['written_gb']:.1f} GB written",
            "below 2 GB of memory",
        )


def counted(found: Results) -> Iterator[Row]:
    """What TensorRT-RTX makes of denoisers."""
    for name, row in found["rows"].items():
        types = ", ".join(
            f"{number} {kind} {what}"
            for what in ("products", "attentions")
            for kind, number in row[what].items()
        )
        width, height = row["size"]
        yield (
            f"Denoiser of {name}, {width}x{height}: what TensorRT-RTX makes of it for sm {found['sm']}",
            f"{row['kernels']} kernels; elementwise {row['elementwise_mb']:.0f} MB, products "
            f"{row['product_mb']:.0f} MB, attention {row['attention_mb']:.0f} MB; {types}",
            "",
        )


def savings(found: Results) -> Iterator[Row]:
    """What a guided step of FLUX.3 takes without one of the savings of its split."""
    for case, one in found["cases"].items():
        plain, *others = one["tflop"]
        yield (
            f"Guided step of FLUX.3 Klein base, 1024x1024, {case}, windows of "
            f"{' and '.join(map(str, found['settings']['windows']))}: products",
            f"{one['tflop'][plain]:.1f} TFLOP",
            "",
        )
        for name in others:
            beside = (
                f", {100 * one['more_cpu'][name]:+.1f} % of a small model's CPU time"
                if "more_cpu" in one
                else ""
            )
            yield f"the same, {name}", f"{100 * one['more_flop'][name]:+.1f} % of the products{beside}", ""
