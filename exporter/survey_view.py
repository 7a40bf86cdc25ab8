"""A dry run on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from flux_trt.exporter.engines.preflight import Estimate
from flux_trt.exporter.survey import Survey
from flux_trt.runtime.lora.term import Lora


def show_survey(found: Survey, engines: bool, console: Console | None = None) -> None:
    """What a build would do, in tables; what is wrong with it is not among it.

    Args:
        found: by `survey`.
        engines: whether engines are wanted, too.
        console: standard output if None.
    """
    console = console or Console()
    _show_parts(found, console)
    stages = _table("stage", "precision", "linked", "written", *(_ENGINE if engines else ()))
    for stage in found.stages:
        inside = f"{stage.precision} on {stage.base}" if stage.base else stage.precision
        sizes = map(_size, (stage.linked, stage.written))
        stages.add_row(
            stage.name, inside, *sizes, *(_engine(stage.linked + stage.written) if engines else ())
        )
    console.print(stages)
    facts = _facts(found)
    facts.add_row("reads", f"{_size(found.read)}, to hash every file")
    facts.add_row("bundle", f"{_size(found.linked)} linked, {_size(found.written)} written")
    facts.add_row("disk", f"{_size(found.free)} free")
    for note in found.notes:
        facts.add_row("note", note)
    console.print(facts)


def show_checkpoint(found: Survey, console: Console | None = None) -> None:
    """What a checkpoint is and has, and what a build of it would lack."""
    console = console or Console()
    _show_parts(found, console)
    facts = _facts(found)
    for kind, lines in (("note", found.notes), ("lacks", found.faults)):
        for line in lines:
            facts.add_row(kind, line)
    console.print(facts)


def show_lora(lora: Lora, family: str, console: Console | None = None) -> None:
    """What a LoRA is and changes, by itself: whether it fits a model is seen when it is built with one."""
    console = console or Console()
    console.print(f"[bold]{lora.path}[/]  a LoRA for {family}, {lora.form} form", soft_wrap=True)
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("kinds", ", ".join(f"{count} {kind}" for kind, count in lora.kinds.items()))
    facts.add_row("rank", ", ".join(map(str, lora.ranks)) or "none")
    facts.add_row("modules", ", ".join(f"{count} of {part}" for part, count in lora.targets.items()))
    scales = {"alpha": "alpha / rank", "metadata": "alpha / rank, of its metadata"}
    facts.add_row("scale", scales.get(lora.scaled_by, "1: it has no alpha"))
    for note in lora.notes:
        facts.add_row("note", note)
    console.print(facts)


def _show_parts(found: Survey, console: Console) -> None:
    console.print(f"[bold]{found.source}[/]  {found.title or 'unknown'}, {found.layout or 'unknown'} layout")
    parts = _table("part", "from", "files", "tensors", "size", "types")
    for part in found.parts:
        size = _size(part.bytes)
        row = (part.name, str(part.folder), f"{part.files}", f"{part.tensors}", size, ", ".join(part.types))
        parts.add_row(*row)
    console.print(parts)


def _facts(found: Survey) -> Table:
    facts = Table(show_header=False, box=None, pad_edge=False)
    lengths = ", ".join(f"{name} {length} tokens" for name, length in found.tokenizers.items())
    facts.add_row("tokenizers", lengths or "none")
    facts.add_row("tasks", ", ".join(found.tasks) or "none: a partial bundle")
    return facts


_ENGINE = ("engine", "its memory", "its time")


def _engine(weights: int) -> tuple[str, str, str]:
    about = Estimate.of(weights)
    return _size(about.plan), _size(about.memory), f"{about.seconds:.0f} s"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("part", "from", "stage") else "right")
    return table
