"""A checkpoint becomes a bundle: the whole way, one call per step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import onnx_ir as ir

from flux_trt.exporter import reuse
from flux_trt.exporter.checkpoints.finite import Finite
from flux_trt.exporter.checkpoints.open import Beside
from flux_trt.exporter.checkpoints.tensorfile import TensorInfo
from flux_trt.exporter.describe import describe
from flux_trt.exporter.engines.engine import keep_engines
from flux_trt.exporter.families.branches import MODULES, adapters, with_branches
from flux_trt.exporter.families.stage import Stage
from flux_trt.exporter.faults import Faults
from flux_trt.exporter.folder import digest, digests, refuse_full_disk, written_aside
from flux_trt.exporter.graphs.glue import write_glue
from flux_trt.exporter.graphs.rewrite import inline as inline_functions
from flux_trt.exporter.graphs.trace import trace
from flux_trt.exporter.graphs.weights import Links, as_they_lie, attach, broken, bytes_to_write, plan_links
from flux_trt.exporter.place import refuse_odd_name, refuse_out
from flux_trt.exporter.prepare import prepare
from flux_trt.exporter.quantise.chosen import roughly_quantised
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.quantize import quantize
from flux_trt.exporter.quantise.ranges import with_ranges
from flux_trt.exporter.written import write_file
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.engine import graph_digest
from flux_trt.runtime.bundle.manifest import (
    QUANTISED,
    File,
    Manifest,
    Precision,
    StageName,
)
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.progress import Progress, silent


def build(
    source: str,
    out: Path,
    *,
    precision: Precision = "fp32",
    stage_precisions: Mapping[StageName, Precision] | None = None,
    fp8: Fp8 | None = None,
    stages: Sequence[StageName] | None = None,
    variant: str | None = None,
    lora_rank: int | None = None,
    link: bool = True,
    inline: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
    **beside: Unpack[Beside],
) -> Manifest:
    """Build the bundle `out` from the checkpoint `source`.

    Args:
        source: a diffusers folder, a safetensors file, or a hub id.
        out: directory to be; an older bundle there is replaced, and its unchanged stages are reused.
        precision: of the bundle; T5 and the VAE stay in fp32 when it is fp16.
        stage_precisions: another precision for single stages.
        fp8: how to quantise what is in fp8 or its like; None: with Fp8's defaults.
        stages: which to build; a bundle without all of them is partial. None: all.
        variant: chooses among variants of the family whose tensors are alike.
        lora_rank: also write the stages that LoRAs change with branches, for LoRAs of up to that rank at run
            time; they use the same weights. None: none.
        link: use weights where they lie when they need no change; False copies every weight.
        inline: write graphs of standard operators alone, for tools that know no model-local functions.
        tell: called with a line for every step done.
        progress: told (what, bytes done, bytes in all) while files are hashed and written.
        beside: what the checkpoint lacks, see `Beside`.

    Raises:
        CheckpointError: the checkpoint is not there or does not fit; nothing was written.
        BuildError: a stage cannot be traced or written; `out` is as it was.
    """
    fp8 = fp8 or Fp8()
    refuse_out(out)
    refuse_odd_name(source)
    prepared = prepare(
        source,
        precision=precision,
        stage_precisions=stage_precisions,
        base=fp8.base,
        stages=stages,
        variant=variant,
        lora_rank=lora_rank,
        faults=Faults(),
        **beside,
    )
    prepared = replace(prepared, plan=[replace(stage, inline=inline) for stage in prepared.plan])
    model, numbers = prepared.model, prepared.numbers
    assert numbers is not None
    tell(f"{source}: {model.title} in {model.checkpoint.layout} layout")
    for line in prepared.notes:
        tell(line)

    with written_aside(out, tell) as aside:
        folder, old = aside.folder, reuse.previous(out)
        sources = _hashed(prepared.plan, progress)
        rough = [roughly_quantised(stage) for stage in prepared.plan]
        links = plan_links(rough, folder) if link else {}
        new_for_sure = [stage for stage in rough if not _may_be_kept(stage, old, sources, link)]
        refuse_full_disk(sum(bytes_to_write(stage, links) for stage in new_for_sure), folder)
        calibration = out.with_name(f"{out.name}.calibration.json")
        plan = with_ranges(prepared.plan, model, sources, fp8, calibration, tell, progress)
        plan = with_branches(plan, prepared.branches)
        keys = {stage.name: reuse.key(stage, sources, link) for stage in plan}
        kept: dict[StageName, reuse.Kept | None] = {}
        for stage in plan:  # what shares weights is new where they are
            anew = stage.shares is not None and kept[stage.shares] is None
            kept[stage.name] = None if anew else reuse.reuse(stage.name, keys[stage.name], old, out, folder)
        refuse_full_disk(sum(bytes_to_write(stage, links) for stage in plan if not kept[stage.name]), folder)
        files = {inside: sources[file] for file, inside in links.items()}
        built: dict[StageName, manifest.Stage] = {}
        for stage in plan:
            started = time.perf_counter()
            if found_there := kept[stage.name]:
                built[stage.name], new = found_there
                tell(f"{stage.name}: reused, nothing it is built from has changed")
            else:
                progress(stage.name, 0, bytes_to_write(stage, links))
                built[stage.name], new = _build_stage(stage, keys[stage.name], folder, links, progress)
                size = sum(file.bytes for file in new.values()) / 1e6
                seconds = time.perf_counter() - started
                tell(f"{stage.name}: {stage.precision}, {size:.1f} MB written in {seconds:.1f} s")
            files |= new
        tokenizers = {name: each.write(folder) for name, each in prepared.tokenizers.items()}
        files |= {each.file: digest(folder / each.file) for each in tokenizers.values()}
        takes = None
        glue, new = write_glue(folder, numbers.model.channels) if "denoiser" in built else ({}, {})
        files |= new
        if prepared.branches and lora_rank is not None:
            modules = model.modules(model.checkpoint)
            files[MODULES] = write_file(folder / MODULES, modules.dumps().encode())
            takes = adapters(plan, prepared.branches, lora_rank)
        found = describe(model, sources, built, glue, tokenizers, takes, files)
        aside.unchanged = reuse.is_same(found, out, folder)
        if not aside.unchanged:
            write_file(folder / manifest.NAME, found.dumps().encode())
            graphs = {name: graph_digest(found, name) for name in (*found.stages, *found.glue)}
            keep_engines(out, folder, graphs)
    return found


def _may_be_kept(stage: Stage, old: Manifest | None, sources: Mapping[Path, File], link: bool) -> bool:
    """Whether a stage could be reused; of one in fp8 and its like that is known once its ranges are."""
    there = old.stages.get(stage.name) if old else None
    if there is None or stage.precision in QUANTISED:
        return there is not None and there.precision == stage.precision
    return there.key == reuse.key(stage, sources, link)


def _hashed(plan: Sequence[Stage], progress: Progress) -> dict[Path, File]:
    """The checkpoint's files, hashed; what is used of them as it lies is looked at on the way.

    Raises:
        CheckpointError: inf or nan in it.
    """
    used: dict[Path, list[tuple[str, TensorInfo]]] = {}
    for (part, file), tensors in as_they_lie(plan).items():  # a file may hold several parts
        used.setdefault(file, []).extend((f"{part}: {name}", info) for name, info in tensors.items())
    watched = {file: Finite(tensors) for file, tensors in used.items()}
    files = {file for stage in plan for file in stage.files}
    found = digests(files, progress, {file: each.see for file, each in watched.items()})
    if names := [name for each in watched.values() for name in each.broken]:
        raise CheckpointError(broken(names))
    return found


def _build_stage(
    stage: Stage, key: str, folder: Path, links: Links, progress: Progress
) -> tuple[manifest.Stage, dict[str, File]]:
    """Trace one stage, give it its weights and write its graph."""
    model = trace(stage)
    if stage.quantisation is not None:
        quantize(model, stage)
    written = attach(model, stage, folder, links, progress)
    if stage.inline:
        inline_functions(model)
    graph = f"{stage.name}.onnx"
    file = write_file(folder / graph, ir.to_proto(model).SerializeToString())
    record = manifest.Stage(
        graph=graph,
        weights=written.used,
        precision=stage.precision,
        base=stage.base,
        inputs=list(stage.inputs),
        outputs=list(stage.outputs),
        runs=stage.runs,
        key=key,
    )
    return record, {graph: file, **written.made}
