"""A dry run: what a build would make of a checkpoint, how large it is, and everything that is wrong with it.

No tensor is read and nothing is written, so that it takes seconds whatever the size.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.open import Beside
from flux_trt.exporter.checkpoints.tensorfile import AnyTensor, Decoded
from flux_trt.exporter.families.stage import Stage
from flux_trt.exporter.faults import Faults
from flux_trt.exporter.folder import existing, refuse_full_disk
from flux_trt.exporter.graphs.weights import bytes_to_write, linkable, linked_bytes
from flux_trt.exporter.place import refuse_out
from flux_trt.exporter.prepare import prepare
from flux_trt.exporter.quantise.calibration import read
from flux_trt.exporter.quantise.chosen import apart, roughly_quantised
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.formats import RANGED
from flux_trt.exporter.quantise.told import told
from flux_trt.runtime.bundle.manifest import Precision, StageName, Task


@dataclass(frozen=True)
class PartRow:
    """Where a part comes from."""

    name: str
    folder: Path
    files: int
    tensors: int
    bytes: int
    types: list[str]


@dataclass(frozen=True)
class StageRow:
    """What a stage becomes."""

    name: StageName
    precision: Precision
    base: Precision | None
    linked: int
    """Bytes of weights that are used where they lie."""
    written: int
    """Bytes of weights that are made anew."""


@dataclass
class Survey:
    """What a build would do."""

    source: str
    title: str = ""
    layout: str = ""
    parts: list[PartRow] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)
    tokenizers: Mapping[str, int] = field(default_factory=dict)
    """Text stage -> tokens of the longest prompt."""
    tasks: list[Task] = field(default_factory=list)
    free: int = 0
    """Bytes on the disk that the bundle would be on."""
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What is known of the checkpoint, as JSON."""
        parts = {part.name: {**vars(part), "folder": str(part.folder)} for part in self.parts}
        return {
            "source": self.source,
            "title": self.title,
            "layout": self.layout,
            "parts": parts,
            "tokenizers": dict(self.tokenizers),
            "tasks": self.tasks,
            "notes": self.notes,
            "lacks": self.faults,
        }

    @property
    def read(self) -> int:
        """Bytes that are read: every file is hashed."""
        return sum(part.bytes for part in self.parts)

    @property
    def linked(self) -> int:
        """Bytes that the bundle shares with the checkpoint."""
        return sum(stage.linked for stage in self.stages)

    @property
    def written(self) -> int:
        """Bytes that the bundle adds, but for some megabytes of graphs."""
        return sum(stage.written for stage in self.stages)


def survey(
    source: str,
    out: Path | None,
    *,
    precision: Precision = "fp32",
    stage_precisions: Mapping[StageName, Precision] | None = None,
    fp8: Fp8 | None = None,
    stages: Sequence[StageName] | None = None,
    link: bool = True,
    variant: str | None = None,
    lora_rank: int | None = None,
    **beside: Unpack[Beside],
) -> Survey:
    """Look at a checkpoint as `build` would, with the same arguments, and collect what is wrong.

    Without `out` the checkpoint alone is looked at, not what a bundle of it would take.
    """
    faults, fp8, found = Faults(collect=True), fp8 or Fp8(), Survey(source)
    with faults.met():
        if out is not None:
            refuse_out(out)
    with faults.met():
        prepared = prepare(
            source,
            precision=precision,
            stage_precisions=stage_precisions,
            base=fp8.base,
            stages=stages,
            variant=variant,
            lora_rank=lora_rank,
            faults=faults,
            **beside,
        )
        model, plan = prepared.model, [roughly_quantised(stage) for stage in prepared.plan]
        found.title, found.layout = model.title, model.checkpoint.layout
        used = dict.fromkeys(stage.part for stage in plan) if out else model.checkpoint.parts
        found.parts = [_part(name, model.checkpoint.parts[name]) for name in used]
        found.tokenizers = {name: each.pad.most for name, each in prepared.tokenizers.items()}
        found.tasks = model.tasks([stage.name for stage in plan])
        found.notes += [*prepared.notes, *(line for stage in prepared.plan if (line := apart(stage)))]
        if out is not None:
            _weights(found, plan, out, link)
    if out is not None:
        with faults.met():
            refuse_full_disk(found.written, existing(out))
        with faults.met():
            if any(stage.precision in RANGED for stage in found.stages):
                found.notes.append(_calibration(fp8, out, prepared.plan))
    found.faults = [str(fault) for fault in faults.found]
    return found


def _part(name: str, part: Part) -> PartRow:
    files = sorted({file for info in part.tensors.values() for file in info.files})
    return PartRow(
        name=name,
        folder=(part.plain or part).folder or (files[0].parent if files else Path()),
        files=len(files),
        tensors=len(part.tensors),
        bytes=sum(file.stat().st_size for file in files),
        types=sorted({_type(info) for info in part.tensors.values()}),
    )


def _type(info: AnyTensor) -> str:
    return info.format if isinstance(info, Decoded) else str(info.dtype).removeprefix("torch.")


def _weights(found: Survey, plan: Sequence[Stage], out: Path, link: bool) -> None:
    place = existing(out)
    found.free, disk = shutil.disk_usage(place).free, place.stat().st_dev
    links = {file: inside for file, inside in linkable(plan).items() if link and file.stat().st_dev == disk}
    if link and len(links) < len(linkable(plan)):
        found.notes.append("weights that need no change are copied: they lie on another disk than --out")
    for stage in plan:
        linked, written = linked_bytes(stage, links), bytes_to_write(stage, links)
        found.stages.append(StageRow(stage.name, stage.precision, stage.base, linked, written))


def _calibration(fp8: Fp8, out: Path, plan: Sequence[Stage]) -> str:
    beside = out.with_name(f"{out.name}.calibration.json")
    if fp8.calibration is not None:
        seen = len(read(fp8.calibration).settings.prompts)
        return f"calibration: {fp8.calibration}, {seen} prompts; a build checks that it is of these weights"
    quantised = [stage for stage in plan if stage.precision in RANGED]
    if not fp8.attention and all(
        stage.precision == "fp8" and told(stage, fp8.per_channel) for stage in quantised
    ):
        return "calibration: none is needed, the checkpoint itself tells the ranges"
    if beside.is_file():
        return f"calibration: {beside}, if it is of these weights"
    return "calibration: none is given, so the model first paints a built-in list of prompts (hours at 12 B)"
