"""Every stage of a bundle against the public PyTorch implementation of the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack, cast

import numpy as np
import torch

from flux_trt.exporter.checkpoints.open import Beside, open_checkpoint
from flux_trt.exporter.families.model import Model
from flux_trt.exporter.families.oracle import Case, Values
from flux_trt.exporter.families.recognise import recognise_as
from flux_trt.exporter.verify.eager import Eager
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.protocols import Backend
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import taken
from flux_trt.runtime.bundle.manifest import Precision, Stage, StageName, Tensor
from flux_trt.runtime.errors import BackendError, CheckpointError

# Rounding once costs 2^-24, 2^-11, 2^-8 and 2^-4; a network of some hundred layers loses a few bits more.
TOLERANCE: dict[Precision, float] = {
    **{"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "fp8": 3e-1},
    **{"int8": 3e-1, "w8a16": 1e-1, "w4a16": 6e-1, "nvfp4": 6e-1},
}
PIXEL = 1 / 255

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One output of one stage: how far it is from the oracle, and how far it may be."""

    stage: StageName
    output: str
    precision: Precision
    ran_on: str
    oracle: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Within tolerance; nan is not."""
        return self.error <= self.tolerance


def verify(
    root: Path,
    *,
    checkpoint: str | None = None,
    **beside: Unpack[Beside],
) -> Iterator[Row]:
    """Run every stage of the bundle and its oracle on the same seeded inputs, branches without LoRAs.

    Args:
        root: the bundle.
        checkpoint, beside: where they are now, when that is not what the manifest says.

    Yields:
        a row per output: the largest error over the largest expected value, in levels of 255 for pictures.

    Raises:
        BundleError: a bundle that is not whole.
        CheckpointError: the checkpoint is not there, or lacks a part that the bundle has.
    """
    bundle = Bundle.open(root)
    known = bundle.manifest.provenance
    loras = {"lora": [f"{lora.file}:{lora.strength!r}" for lora in known.loras]}
    given = (
        loras
        | known.beside
        | {name: value for name, value in beside.items() if value not in (None, (), False)}
    )
    try:
        found = open_checkpoint(checkpoint or known.checkpoint, **cast(Beside, given))
    except CheckpointError as fault:
        raise CheckpointError(
            f"{fault} (the bundle was built from {known.checkpoint}; --checkpoint says where that is now)"
        ) from None
    model, takes = recognise_as(found, bundle.manifest.variant), bundle.manifest.adapters
    for name in (name for name in model.parts if name in bundle.manifest.stages):
        part = model.parts[name]
        if part not in found.parts:
            raise CheckpointError(f"{found.source} has no {part}; give what the bundle was built from")
        expected = model.case(name)
        yield from _rows(model, bundle, name, expected)
        if takes and name in takes.stages:
            none = {tensor.name: torch.zeros(_of_rank_1(tensor)) for tensor in _branches(bundle, name)}
            case = replace(expected, inputs={**expected.inputs, **none})
            yield from _rows(model, bundle, takes.stages[name], case)


def _rows(model: Model, bundle: Bundle, name: StageName, expected: Case) -> Iterator[Row]:
    """Of one stage."""
    stage = bundle.stage(name)
    backend, where = _choose(model, bundle, name, stage)
    outputs = _run(backend, bundle, name, stage, expected.inputs)
    tolerance = TOLERANCE[stage.precision]
    for output in stage.outputs:
        error = relative_error(outputs[output.name], expected.expected[output.name].numpy())
        allowed = max(tolerance, PIXEL) if output.dtype == "uint8" else tolerance
        yield Row(name, output.name, stage.precision, where, expected.oracle, error, allowed)


def _branches(bundle: Bundle, name: StageName) -> list[Tensor]:
    """What a stage takes more where it has branches for LoRAs."""
    assert bundle.manifest.adapters is not None
    own = {tensor.name for tensor in bundle.stage(name).inputs}
    branched = bundle.stage(bundle.manifest.adapters.stages[name])
    return [tensor for tensor in branched.inputs if tensor.name not in own]


def _of_rank_1(tensor: Tensor) -> list[int]:
    return [dim if isinstance(dim, int) else 1 for dim in tensor.dims]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|; pictures are compared on their own scale, 255."""
    scale = 255.0 if found.dtype == np.uint8 else float(np.abs(expected).max())
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def _run(backend: Backend, bundle: Bundle, name: StageName, stage: Stage, inputs: Values) -> Arrays:
    graph = backend.load(bundle.root / stage.graph, name, stage)
    try:
        found = graph.run(taken(stage, {key: value.contiguous().numpy() for key, value in inputs.items()}))
        return {key: value.numpy() for key, value in found.items()}
    finally:
        graph.close()


def _choose(model: Model, bundle: Bundle, name: StageName, stage: Stage) -> tuple[Backend, str]:
    """onnxruntime, or the traced torch module where onnxruntime has no kernels."""
    onnxruntime = connect("onnxruntime", "auto")
    try:
        onnxruntime.refuse(name, stage)
    except BackendError:
        return Eager(model, adapters=bundle.manifest.adapters), "torch cpu"
    return onnxruntime, f"onnxruntime {onnxruntime.device}"
