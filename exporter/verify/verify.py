"""Every stage of a bundle against the public PyTorch implementation of the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, open_checkpoint
from flux_trt.exporter.families.flux1.reference import Values, case
from flux_trt.exporter.families.flux1.stages import PARTS
from flux_trt.exporter.verify.eager import Eager
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.protocols import Backend
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.manifest import Precision, Stage, StageName
from flux_trt.runtime.errors import BackendError, CheckpointError

# Rounding once costs 2^-24, 2^-11, 2^-8 and 2^-4; a network of some hundred layers loses a few bits more.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "fp8": 3e-1}
PIXEL = 1 / 255

Arrays = dict[str, np.ndarray]


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
        checkpoint, text_encoders, vae: where they are now, when that is not what the manifest says.

    Yields:
        a row per output: the largest error over the largest expected value, in levels of 255 for pictures.

    Raises:
        BundleError: a bundle that is not whole.
        CheckpointError: the checkpoint is not there, or lacks a part that the bundle has.
    """
    bundle = Bundle.open(root)
    known = bundle.manifest.provenance
    text_encoders = text_encoders or (Path(known.text_encoders) if known.text_encoders else None)
    vae = vae or (Path(known.vae) if known.vae else None)
    try:
        found = open_checkpoint(checkpoint or known.checkpoint, text_encoders=text_encoders, vae=vae)
    except CheckpointError as fault:
        raise CheckpointError(
            f"{fault} (the bundle was built from {known.checkpoint}; --checkpoint says where that is now)"
        ) from None
    for name, stage in bundle.manifest.stages.items():
        if PARTS[name] not in found.parts:
            raise CheckpointError(f"{found.source} has no {PARTS[name]}; give what the bundle was built from")
        expected = case(name, found)
        backend, where = _choose(found, name, stage)
        outputs = _run(backend, bundle, name, stage, expected.inputs)
        tolerance = TOLERANCE[stage.precision]
        for output in stage.outputs:
            error = relative_error(outputs[output.name], expected.expected[output.name].numpy())
            allowed = max(tolerance, PIXEL) if output.dtype == "uint8" else tolerance
            yield Row(name, output.name, stage.precision, where, error, allowed)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|; pictures are compared on their own scale, 255."""
    scale = 255.0 if found.dtype == np.uint8 else float(np.abs(expected).max())
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def _run(backend: Backend, bundle: Bundle, name: StageName, stage: Stage, inputs: Values) -> Arrays:
    graph = backend.load(bundle.root / stage.graph, name, stage)
    try:
        found = graph.run({key: value.contiguous().numpy() for key, value in inputs.items()})
        return {key: value.numpy() for key, value in found.items()}
    finally:
        graph.close()


def _choose(checkpoint: Checkpoint, name: StageName, stage: Stage) -> tuple[Backend, str]:
    """onnxruntime, or the traced torch module where onnxruntime has no kernels."""
    onnxruntime = connect("onnxruntime", "auto")
    try:
        onnxruntime.refuse(name, stage)
    except BackendError:
        return Eager(checkpoint), "torch cpu"
    return onnxruntime, f"onnxruntime {onnxruntime.device}"
