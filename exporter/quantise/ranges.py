"""The ranges of a quantised build: read from a calibration, or calibrated now, and given to the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch

from flux_trt.exporter.checkpoints.open import Beside, open_checkpoint
from flux_trt.exporter.families.model import Model
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.families.stage import Quantisation, Stage
from flux_trt.exporter.folder import digests
from flux_trt.exporter.quantise.calibrate import Painting, calibrate, from_text, settings_of, usual
from flux_trt.exporter.quantise.calibration import ATTENTION, HEADS, Calibration, digest_of, read
from flux_trt.exporter.quantise.chosen import apart, formats_of
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.enough import warning
from flux_trt.exporter.quantise.formats import RANGED
from flux_trt.exporter.quantise.told import told
from flux_trt.runtime.bundle.manifest import QUANTISED, File, Precision
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.lines import lines
from flux_trt.runtime.progress import Progress, silent

ATTENTIVE: tuple[Precision, ...] = ("fp8", "nvfp4")
"""The precisions that attention in fp8 goes with: GPUs that have them have FP8, too."""


def with_ranges(
    plan: Sequence[Stage],
    model: Model,
    sources: Mapping[Path, File],
    fp8: Fp8,
    beside: Path,
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> list[Stage]:
    """The stages, those that are quantised with their quantisation.

    Args:
        plan: all stages.
        model: the checkpoint they are made from, as its family reads it.
        sources: hashes of the checkpoint's files that are known already.
        fp8: how to quantise.
        beside: where a calibration is kept that is not given: a later build takes it from there.
        tell: called with a line for what a user should know.
        progress: told (what, done, total).

    Raises:
        BuildError: a calibration that is not one, or of other weights; attention in fp8 of what has none.
        CheckpointError: nothing to calibrate with.
    """
    for stage in plan:
        if fp8.attention and stage.fp8_attention and stage.precision in set(QUANTISED) - set(ATTENTIVE):
            raise BuildError(
                f"{stage.name} is in {stage.precision}, and attention in fp8 goes with "
                f"{' or '.join(ATTENTIVE)}; leave --fp8-attention out"
            )
    plan = [_by_itself(stage, fp8) for stage in plan]
    for stage in plan:
        if stage.quantisation is not None:
            layers = len(stage.quantisation.inputs)
            tell(f"{stage.name}: the checkpoint itself tells the ranges of {layers} layers")
    plan = [_by_weights(stage, fp8) for stage in plan]
    for stage in plan:
        if line := apart(stage):
            tell(line)
    quantised = [stage for stage in plan if stage.precision in RANGED and stage.quantisation is None]
    if not quantised:
        return plan
    weights = identity(model, sources, progress)
    if fp8.calibration is not None:
        found, parts = read(fp8.calibration), {stage.part for stage in quantised}
        if model.checkpoint.loras and any(found.weights.get(part) != weights[part] for part in parts):
            weights = identity(model, sources, progress, plain=True)
            tell(f"{fp8.calibration} is not of the model with its LoRAs; that of the model without is used")
        refuse_foreign(found, weights, parts, fp8.calibration)
        if line := warning(found.settings, usual(model)):
            tell(f"{line}: {fp8.calibration}")
    else:
        settings = settings_of(model)
        kept = _kept(beside, weights)
        if kept is None:
            tell(
                f"calibrating with {len(settings.prompts)} built-in prompts at {settings.width}x"
                f"{settings.height}, {settings.steps} steps; --calibration takes a file instead"
            )
            kept = calibrate(model, from_text(model, settings), weights, beside, tell=tell, progress=progress)
        tell(f"calibration: {beside}")
        found = kept
    return [
        replace(stage, quantisation=quantisation(stage, found, fp8)) if stage in quantised else stage
        for stage in plan
    ]


def _by_itself(stage: Stage, fp8: Fp8) -> Stage:
    """The stage with the ranges that its own file tells; a calibration that is given goes before them."""
    if stage.precision != "fp8" or fp8.calibration is not None or (fp8.attention and stage.fp8_attention):
        return stage
    return replace(stage, quantisation=told(stage, fp8.per_channel))


def _by_weights(stage: Stage, fp8: Fp8) -> Stage:
    """The stage with its quantisation, where that is of weights alone and needs no ranges."""
    if stage.precision not in QUANTISED or stage.precision in RANGED:
        return stage
    return replace(stage, quantisation=Quantisation(layers=formats_of(stage), per_channel=fp8.per_channel))


def calibrate_checkpoint(
    source: str,
    out: Path,
    *,
    prompts: Path | None = None,
    pictures: Callable[[Model, str], Painting] | None = None,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    variant: str | None = None,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
    **beside: Unpack[Beside],
) -> Calibration:
    """Calibrate the checkpoint `source` and write `out`.

    Args:
        source: as for `build`.
        out: the JSON file.
        prompts: a text file with a prompt on each line; None: a built-in list.
        pictures: makes what is painted from pictures, of the model and for a device (`pictured.Jobs`);
            instead of prompts, size, steps and guidance.
        size, steps, guidance: of what is painted from prompts.
        variant, beside: as for `build`.
        device: a torch device.
        tell: called with a line for what a user should know.
        progress: told (what, bytes done, bytes in all).

    Raises:
        CheckpointError: the checkpoint is not there or lacks a part.
        BuildError: prompts, a variant or a device that cannot be used, or `out` cannot be written.
        RequestError: a size that is not possible.
    """
    checkpoint = open_checkpoint(source, **beside)
    model = recognise(checkpoint, variant)
    if device == "cuda" and not torch.cuda.is_available():
        raise BuildError("PyTorch finds no GPU; use --device cpu")
    if pictures is not None:
        if prompts is not None:
            raise BuildError("--prompts and --jobs are given; the jobs have prompts of their own: give one")
        painting = pictures(model, device)
    else:
        texts = _lines(prompts) if prompts is not None else ()
        settings = settings_of(model, prompts=texts, size=size, steps=steps, guidance=guidance)
        painting = from_text(model, settings)
    if line := warning(painting.settings, usual(model)):
        tell(line)
    weights = identity(model, {}, progress)
    return calibrate(model, painting, weights, out, device=device, tell=tell, progress=progress)


def _lines(path: Path) -> list[str]:
    """The prompts of a file; blank lines are none.

    Raises:
        BuildError: no prompts there.
    """
    try:
        found = lines(path.read_bytes())
    except (OSError, ValueError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else fault
        raise BuildError(f"cannot read {path} ({why}); give a text file with a prompt on each line") from None
    if not found:
        raise BuildError(f"{path} has no prompts; give a text file with a prompt on each line")
    return found


def quantisation(stage: Stage, found: Calibration, fp8: Fp8) -> Quantisation:
    """What of a stage is quantised, and its ranges.

    Raises:
        BuildError: the calibration lacks a layer.
    """
    layers = formats_of(stage)
    ranged = [layer for layer, precision in layers.items() if precision in RANGED]
    inputs = found.sizes(stage.name, ranged, fp8.statistic)
    attention: dict[str, tuple[float, float, float]] = {}
    if fp8.attention and stage.fp8_attention:
        for block in dict.fromkeys(".".join(layer.split(".")[:2]) for layer in layers):
            names = [f"{block}.{ATTENTION}.{head}" for head in HEADS]
            q, k, v = found.sizes(stage.name, names, fp8.statistic).values()
            attention[block] = q, k, v
    return Quantisation(layers=layers, inputs=inputs, attention=attention, per_channel=fp8.per_channel)


def identity(
    model: Model, sources: Mapping[Path, File], progress: Progress = silent, plain: bool = False
) -> dict[str, str]:
    """What identifies the weights of each part that is calibrated; files not in `sources` are hashed.

    `plain` leaves out the LoRAs that are merged into a part.
    """
    there = model.checkpoint.parts
    if plain:
        there = {name: part.plain or part for name, part in there.items()}
    plan = [model.stage(name) for name, part in model.parts.items() if part in there]
    parts = {stage.part: there[stage.part] for stage in plan if stage.fp8_layers}
    of = {
        name: {file for info in part.tensors.values() for file in info.files} for name, part in parts.items()
    }
    missing = set().union(*of.values()) - set(sources)
    known = {**sources, **(digests(missing, progress) if missing else {})}
    return {
        name: digest_of(
            {file: known[file] for file in paths},
            [f"{lora.strength!r} x {known[lora.path].sha256}" for lora in parts[name].loras],
        )
        for name, paths in of.items()
    }


def refuse_foreign(found: Calibration, weights: Mapping[str, str], parts: set[str], path: Path) -> None:
    """Refuse a calibration of other weights.

    Raises:
        BuildError: naming the part.
    """
    for part in sorted(parts):
        if found.weights.get(part) != weights[part]:
            raise BuildError(
                f"{path} was made with another {part}; run flux-export calibrate on this checkpoint, "
                "or leave --calibration out"
            )


def _kept(path: Path, weights: Mapping[str, str]) -> Calibration | None:
    """The calibration that an earlier build kept, when it is of these weights."""
    try:
        found = read(path)
    except BuildError:
        return None
    return found if found.weights == dict(weights) else None
