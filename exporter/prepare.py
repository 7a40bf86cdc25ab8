"""Everything that can be known before any work: what is built, from what, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

from flux_trt.exporter.checkpoints.open import Beside, open_checkpoint
from flux_trt.exporter.checkpoints.tokenizer import LoadedTokenizer, load_tokenizer
from flux_trt.exporter.families.branches import all_branches
from flux_trt.exporter.families.model import Model, Numbers
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.families.stage import Stage
from flux_trt.exporter.faults import Faults
from flux_trt.runtime.bundle.adapters import Branch
from flux_trt.runtime.bundle.manifest import Precision, StageName
from flux_trt.runtime.errors import CheckpointError


@dataclass(frozen=True)
class Prepared:
    """A build that can begin; where faults are collected, what is left of one."""

    model: Model
    numbers: Numbers | None
    """None where they have a fault."""
    plan: list[Stage]
    tokenizers: Mapping[str, LoadedTokenizer]
    notes: list[str]
    """What is left out, and what was chosen: a line each, for people."""
    branches: list[Branch] = field(default_factory=list)
    """Through which LoRAs reach the stages at run time."""


def prepare(
    source: str,
    *,
    precision: Precision,
    stage_precisions: Mapping[StageName, Precision] | None,
    base: Precision,
    stages: Sequence[StageName] | None,
    variant: str | None,
    lora_rank: int | None = None,
    faults: Faults,
    **beside: Unpack[Beside],
) -> Prepared:
    """Open a checkpoint and check all that `build` relies on; the arguments are `build`'s.

    Raises:
        CheckpointError: the checkpoint is not there or is of no known family; other faults where they are
            not collected.
        BuildError: a precision that a stage cannot have, likewise.
    """
    checkpoint = open_checkpoint(source, faults=faults, **beside)
    model = recognise(checkpoint, variant, faults)
    checkpoint = model.checkpoint
    plan = make_stages(model, precision, stages, stage_precisions, base, faults)
    disagreements: list[str] = []
    with faults.met():
        disagreements = model.disagreements()
    for line in disagreements:
        with faults.met():
            raise CheckpointError(line)
    numbers, tokenizers = None, dict[str, LoadedTokenizer]()
    with faults.met():
        numbers = model.numbers()
    wanted = [name for name in (model.parts if stages is None else stages) if name in model.parts]
    notes = [*checkpoint.notes, *model.choices]
    for name in wanted if numbers else ():
        if name not in numbers.padding:
            continue
        if name not in checkpoint.tokenizers and set(wanted) != set(model.parts):
            notes.append(f"{name} has no tokenizer, and the partial bundle will have none")
            continue
        with faults.met():
            tokenizers[name] = _tokenizer(model, numbers, name)
    branches: list[Branch] = []
    if lora_rank is not None and not faults.found:
        with faults.met():
            branches = all_branches(model, plan, lora_rank)
            stages = ", ".join(dict.fromkeys(each.stage for each in branches))
            notes.append(f"{stages}: also with branches for LoRAs of rank {lora_rank}, on the same weights")
    return Prepared(model, numbers, plan, tokenizers, notes, branches)


def _tokenizer(model: Model, numbers: Numbers, name: StageName) -> LoadedTokenizer:
    """The tokenizer of a text stage, which must not know more tokens than the encoder."""
    source = model.checkpoint
    if name not in source.tokenizers:
        raise CheckpointError(
            f"{source.source} has no tokenizer for {name}; give a diffusers folder or a bundle that has it "
            "with --tokenizers"
        )
    found = load_tokenizer(source.tokenizers[name], name, numbers.padding[name])
    size = model.stage(name).config.get("vocab_size") if model.parts[name] in source.parts else None
    if size is not None and found.vocabulary > size:
        raise CheckpointError(
            f"the tokenizer {source.tokenizers[name]} has {found.vocabulary} tokens and {name} knows {size}; "
            "give the one that belongs to it"
        )
    return found
