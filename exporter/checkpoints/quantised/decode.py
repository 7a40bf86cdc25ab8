"""All that is quantised among tensors, decoded, in whatever format it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flux_trt.exporter.checkpoints.quantised import bitsandbytes, scaled_fp8, torchao
from flux_trt.exporter.checkpoints.quantised.notes import layer_notes
from flux_trt.exporter.checkpoints.quantised.refused import refuse
from flux_trt.exporter.checkpoints.tensorfile import AnyTensor, Decoded, TensorInfo


def decoded(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, AnyTensor]:
    """The tensors with every quantised weight as its numbers, and without scales and markers.

    What is not quantised stays the very object that it was.

    Args:
        tensors: of one part or of a whole file; names may have a prefix.
        metadata: of the header, see `read_metadata`.
        config: the part's `config.json`; {} where there is none.

    Raises:
        CheckpointError: a format that is not decoded, or scales that do not fit their codes.
    """
    notes = layer_notes(tensors, metadata)
    refuse(tensors, notes, config)
    made: dict[str, Decoded] = {}
    spent: set[str] = set()
    for new, used in (
        scaled_fp8.find(tensors, notes),
        bitsandbytes.find(tensors),
        torchao.find(tensors, metadata),
    ):
        made |= new
        spent |= used
    kept = {name: info for name, info in tensors.items() if name in made or name not in spent}
    return {**kept, **made}
