"""Everything that can be known before any work: what is built, from what, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from flux_trt.exporter.checkpoints.open import Beside, open_checkpoint
from flux_trt.exporter.checkpoints.tokenizer import LoadedTokenizer, load_tokenizer
from flux_trt.exporter.families.model import Model, Numbers
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.families.stage import Stage
from flux_trt.exporter.faults import Faults
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


def prepare(
    source: str,
    *,
    precision: Precision,
    stage_precisions: Mapping[StageName, Precision] | None,
    base: Precision,
    stages: Sequence[StageName] | None,
    variant: str | None,
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
    model = recognise(checkpoint, variant)
    plan = make_stages(model, precision, stages, stage_precisions, base, faults)
    for line in model.disagreements():
        with faults.met():
            raise CheckpointError(line)
    numbers, tokenizers = None, dict[str, LoadedTokenizer]()
    with faults.met():
        numbers = model.numbers()
    wanted = list(model.parts) if stages is None else list(stages)
    for name in wanted if numbers else ():
        with faults.met():
            whole = set(wanted) == set(model.parts)
            if name in numbers.padding and (found := _tokenizer(model, numbers, name, whole)):
                tokenizers[name] = found
    return Prepared(model, numbers, plan, tokenizers)


def _tokenizer(model: Model, numbers: Numbers, name: StageName, whole: bool) -> LoadedTokenizer | None:
    """The tokenizer of a text stage; a partial bundle may do without."""
    source = model.checkpoint
    if name not in source.tokenizers:
        if not whole:
            return None
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
