"""Bundles and verifications as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flux_trt.runtime.bundle.engine import Engine, Profile, engines
from flux_trt.runtime.bundle.manifest import Manifest, Record, Tensor

if TYPE_CHECKING:
    from flux_trt.exporter.engines.report import Counts
    from flux_trt.exporter.verify.verify import Row


def show(root: Path, manifest: Manifest, console: Console | None = None) -> None:
    """What a bundle holds, from its manifest and the records of its engines."""
    console = console or Console()
    m, d, p = manifest.model, manifest.defaults, manifest.provenance
    size = sum(file.bytes for file in manifest.files.values())
    title = f"{manifest.family} {manifest.variant}"
    console.print(f"[bold]{root}[/]  {title}, {size / 1e6:.1f} MB, schema {manifest.schema_version}")
    table = Table("stage", "runs", "precision", "inputs", "outputs", "weights", box=None, pad_edge=False)
    for name, stage in manifest.stages.items():
        weights = sum(manifest.files[path].bytes for path in stage.weights) / 1e6
        others = [other for other in manifest.stages.values() if other is not stage]
        shared = any(path in other.weights for other in others for path in stage.weights)
        ends = (_tensors(stage.inputs), _tensors(stage.outputs))
        inside = f"{stage.precision} on {stage.base}" if stage.base else stage.precision
        table.add_row(name, stage.runs, inside, *ends, f"{weights:.1f} MB{', shared' * shared}")
    console.print(table)
    if built := engines(root):
        console.print(_engines(built))
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("tasks", ", ".join(manifest.tasks) or "none: a partial bundle, or a variant not yet served")
    facts.add_row("text", "; ".join(_encoders(manifest)))
    facts.add_row("schedule", _told(manifest.schedule))
    facts.add_row("guidance", _told(manifest.guidance))
    facts.add_row("positions", _told(m.positions))
    facts.add_row("noise", _told(m.noise))
    if m.references:
        facts.add_row("references", f"enter {m.references.enters}, sizes {m.references.size.kind}")
    if a := manifest.adapters:
        facts.add_row("LoRAs", f"at run time, of rank {a.rank} at most, in {', '.join(a.stages)}")
    facts.add_row("sizes", f"{manifest.sizes.smallest} to {manifest.sizes.largest} px in steps of {m.patch}")
    facts.add_row("defaults", f"{d.width}x{d.height}, {d.steps} steps")
    facts.add_row("built from", f"{p.checkpoint} ({p.layout} layout, {len(p.sources)} files)")
    for lora in p.loras:
        facts.add_row("LoRA", f"{lora.file} at {lora.strength:g}: {lora.form}")
    facts.add_row("built by", p.tool + (f" on {p.created}" if p.created else ""))
    facts.add_row("with", ", ".join(f"{name} {version}" for name, version in p.packages.items()))
    console.print(facts)


def _encoders(manifest: Manifest) -> Iterator[str]:
    """What each text encoder reads."""
    for encoder in manifest.encoders:
        if tokenizer := manifest.tokenizers.get(encoder.tokenizer):
            pad = tokenizer.pad
            window = f"{pad.most}" if pad.multiple == pad.most else f"{pad.multiple} to {pad.most}"
            yield f"{encoder.stage} reads {window} tokens, padded {pad.side}{', masked' * tokenizer.mask}"


def _told(rule: Record) -> str:
    """A rule in one line: its kind, then its numbers; what is not set is left out."""

    def told(value: Any) -> str:
        if isinstance(value, dict):
            return " ".join(f"{name} {told(each)}" for name, each in value.items())
        return " ".join(map(told, value)) if isinstance(value, list) else str(value)

    fields = rule.model_dump(mode="json", exclude_none=True)
    kind = [fields.pop("kind")] if "kind" in fields else []
    return ", ".join([*kind, *(f"{name} {told(value)}" for name, value in fields.items())])


def _engines(built: Iterable[tuple[Path, Engine]]) -> Table:
    table = Table("engine", "for", "precision", "profiles", "plan", box=None, pad_edge=False)
    for folder, engine in built:
        recipe = engine.recipe
        extras = [f"opt-level {recipe.opt_level}"] if recipe.opt_level is not None else []
        extras += ["weight streaming"] * recipe.weight_streaming + recipe.plugins
        table.add_row(
            folder.name,
            f"{recipe.flavour} {recipe.version}, sm {', '.join(recipe.capabilities)}",
            "\n".join([recipe.precision, *extras]),
            "\n".join(map(_profile, recipe.profiles)),
            f"{engine.plan.bytes / 1e6:.1f} MB",
        )
    return table


def _profile(profile: Profile) -> str:
    ranges = {dim: sorted(set(each)) for dim, each in profile.items()}
    return ", ".join(f"{dim} {' to '.join(map(str, (r[0], r[-1])[: len(r)]))}" for dim, r in ranges.items())


def _tensors(tensors: Iterable[Tensor]) -> Text:
    short = {"float32": "f32", "float16": "f16", "int64": "i64", "int32": "i32", "uint8": "u8"}
    lines = (f"{t.name} {short.get(t.dtype, t.dtype)} [{', '.join(map(str, t.dims))}]" for t in tensors)
    return Text("\n".join(lines))


def show_counts(found: Mapping[str, Counts], sm: str, console: Console | None = None) -> None:
    """What engines are made of: a line per stage."""
    console = console or Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "kernels", "elementwise MB", "product MB", "attention MB"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    table.add_column("products by input")
    table.add_column("attentions by input")
    for name, each in found.items():
        megabytes = (f"{mb:.1f}" for mb in (each.elementwise_mb, each.product_mb, each.attention_mb))
        table.add_row(name, str(each.kernels), *megabytes, _types(each.products), _types(each.attentions))
    console.print(table)
    console.print(f"tensorrt-rtx for sm {sm}, one picture: what each run reads and writes")


def _types(found: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in found.items())


def show_rows(rows: Iterable[Row], console: Console | None = None) -> None:
    """A verification: a line per stage output, and the public implementation that each stage is held to."""
    console, rows, stages = console or Console(), list(rows), dict[str, list[str]]()
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "output", "precision", "ran on"):
        table.add_column(heading)
    for heading in ("relative error", "tolerance"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        stages.setdefault(row.oracle, []).append(row.stage)
        verdict = "[green]ok[/]" if row.passed else "[red]off[/]"
        table.add_row(
            row.stage,
            row.output,
            row.precision,
            row.ran_on,
            f"{row.error:.1e}",
            f"{row.tolerance:.1e}",
            verdict,
        )
    console.print(table)
    for oracle, held in stages.items():
        console.print(f"{', '.join(dict.fromkeys(held))}: beside {oracle}")
