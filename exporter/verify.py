"""Every stage of a bundle against the public PyTorch implementation of the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from flux_trt.exporter.checkpoint import Checkpoint, open_checkpoint
from flux_trt.exporter.reference import Values, case
from flux_trt.exporter.stages import DTYPES, make_stages, skeleton
from flux_trt.exporter.stages import Stage as Traced
from flux_trt.exporter.tensorfile import TensorInfo
from flux_trt.runtime.backend import connect
from flux_trt.runtime.bundle import Bundle
from flux_trt.runtime.errors import BackendError, CheckpointError
from flux_trt.runtime.manifest import STAGES, Precision, Stage, StageName

# Rounding once costs 2^-24, 2^-11 and 2^-8; a network of some hundred layers loses a few bits more.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
PIXEL = 1 / 255


@dataclass(frozen=True)
class Row:
    """One output of one stage: how far it is from the oracle, and how far it may be."""

    stage: StageName
    output: str
    precision: Precision
    ran_on: str
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
    text_encoders: Path | None = None,
    vae: Path | None = None,
) -> Iterator[Row]:
    """Run every stage of the bundle and its oracle on the same seeded inputs.

    Args:
        root: the bundle.
        checkpoint: where it was built from, when that is not what its manifest says.
        text_encoders, vae: as in `build`, for a BFL file.

    Yields:
        a row per output: the largest error over the largest expected value, in levels of 255 for pictures.

    Raises:
        BundleError: a bundle that is not whole.
        CheckpointError: the checkpoint is not there, or has changed since the bundle was built.
    """
    bundle = Bundle.open(root)
    source = checkpoint or bundle.manifest.provenance.checkpoint
    try:
        found = open_checkpoint(source, text_encoders=text_encoders, vae=vae)
    except CheckpointError as fault:
        raise CheckpointError(f"{fault} (--checkpoint tells verify where the checkpoint is now)") from None
    for name in (name for name in STAGES if name in bundle.manifest.stages):
        stage = bundle.manifest.stages[name]
        expected = case(name, found)
        outputs, where = _run(found, bundle, name, stage, expected.inputs)
        tolerance = TOLERANCE[stage.precision]
        for output in stage.outputs:
            error = relative_error(outputs[output.name], expected.expected[output.name].numpy())
            allowed = max(tolerance, PIXEL) if output.dtype == "uint8" else tolerance
            yield Row(name, output.name, stage.precision, where, error, allowed)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|; pictures are compared on their own scale, 255."""
    scale = 255.0 if found.dtype == np.uint8 else float(np.abs(expected).max())
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def _run(
    checkpoint: Checkpoint, bundle: Bundle, name: StageName, stage: Stage, inputs: Values
) -> tuple[dict[str, np.ndarray], str]:
    """The stage's outputs from onnxruntime, or from its torch module where onnxruntime has no kernels."""
    backend = connect("onnxruntime", "auto")
    try:
        backend.refuse(name, stage)
    except BackendError:
        (traced,) = make_stages(checkpoint, stage.precision, [name], {name: stage.precision})
        return _run_torch(traced, bundle, stage, inputs), "torch cpu"
    graph = backend.load(bundle.root / stage.graph, name, stage)
    try:
        found = graph.run({key: value.contiguous().numpy() for key, value in inputs.items()})
        return {key: value.numpy() for key, value in found.items()}, f"onnxruntime {backend.device}"
    finally:
        graph.close()


def _run_torch(traced: Traced, bundle: Bundle, record: Stage, inputs: Values) -> dict[str, np.ndarray]:
    """The module that was traced, with the weights that lie in the bundle."""
    module = skeleton(traced)
    for name, value in ir.load(bundle.root / record.graph).graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            owner, _, attribute = name.rpartition(".")
            read = TensorInfo(
                Path(tensor.path),
                DTYPES[record.precision],
                tuple(tensor.shape.numpy()),
                tensor.offset or 0,
                tensor.length or 0,
            ).read()
            setattr(module.get_submodule(owner), attribute, torch.nn.Parameter(read, requires_grad=False))
    with torch.no_grad():
        found = module(*(inputs[tensor.name] for tensor in record.inputs))
    outputs: tuple[Tensor, ...] = found if isinstance(found, tuple) else (found,)
    return {tensor.name: value.numpy() for tensor, value in zip(record.outputs, outputs, strict=True)}
