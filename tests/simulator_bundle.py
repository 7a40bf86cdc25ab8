"""A bundle with simulated engines, and a pipeline that runs them on a simulated GPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simulator_tensorrt
from simulator_cuda import CudaSimulator

from flux_trt.runtime.backends.tensorrt import TensorRT
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.engine import PLAN, RECORD, Engine, Profile, Recipe, graph_digest
from flux_trt.runtime.bundle.manifest import File
from flux_trt.runtime.pipeline import Pipeline

WIDE: Profile = {
    "batch": (1, 1, 4),
    "text": (1, 6, 64),
    "tokens": (1, 16, 64),
    "sequence": (1, 22, 128),
    "steps": (1, 3, 28),
    "h": (1, 4, 8),
    "w": (1, 4, 8),
    "height": (16, 64, 128),
    "width": (16, 64, 128),
}
VERSION = simulator_tensorrt.VERSION


def add_engines(
    root: Path,
    profiles: list[Profile] | None = None,
    weights: int = 1 << 12,
    recordable: bool = True,
    plan: dict[str, Any] | None = None,
    **recipe: Any,
) -> None:
    """Write an engine for every stage and glue graph; `plan` and `recipe` change what is written."""
    found = manifest.read(root)
    branches = found.adapters.branches if found.adapters else []
    ranks = {each.rank: (1, each.rounded(1), each.most) for each in branches}
    for name in (*found.stages, *found.glue):
        stage = found.graph(name)
        varying = {dim for each in stage.inputs for dim in each.dims if isinstance(dim, str)}
        chosen = [{dim: {**each, **ranks}[dim] for dim in sorted(varying)} for each in profiles or [WIDE]]
        made = Recipe(
            **{
                "stage": name,
                "graph": graph_digest(found, name),
                "precision": stage.precision,
                "flavour": "tensorrt-rtx",
                "version": VERSION,
                "capabilities": ["8.9", "12.0"],
                "profiles": chosen,
                "plugins": [],
                **recipe,
            }
        )
        inside = {
            "kind": simulator_tensorrt.MAGIC,
            "version": made.version,
            "capabilities": made.capabilities,
            "graph": str(root / stage.graph),
            "inputs": [each.model_dump() for each in stage.inputs],
            "outputs": [each.model_dump() for each in stage.outputs],
            "profiles": [
                {each.name: [_shape(each, profile, which) for which in range(3)] for each in stage.inputs}
                for profile in chosen
            ],
            "weights": weights,
            "streamable": made.weight_streaming,
            "recordable": recordable,
            "user_allocation": True,
            **(plan or {}),
        }
        folder = root / made.folder
        folder.mkdir(parents=True)
        data = json.dumps(inside).encode().ljust(weights)  # as long as weights of that size would make it
        (folder / PLAN).write_bytes(data)
        record = Engine(recipe=made, plan=File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        (folder / RECORD).write_text(record.dumps())


def _shape(tensor: manifest.Tensor, profile: Profile, which: int) -> list[int]:
    return [dim if isinstance(dim, int) else profile[dim][which] for dim in tensor.dims]


def backend(root: Path, cuda: CudaSimulator, memory: str = "resident", version: str = VERSION) -> TensorRT:
    return TensorRT(
        Bundle.open(root),
        "tensorrt-rtx",
        memory,
        module=simulator_tensorrt.module(cuda, version),
        driver=cuda,
    )


def pipeline(root: Path, cuda: CudaSimulator, memory: str = "resident", record: bool = True) -> Pipeline:
    return Pipeline(Bundle.open(root), backend(root, cuda, memory), memory, record)


def agree(
    root: Path, paint: Callable[[Pipeline, int], Sequence[Any]], memory: str = "resident"
) -> CudaSimulator:
    """Three paintings, step by step, recorded and launched again, are those of onnxruntime, byte by byte.

    Args:
        root: a bundle with simulated engines.
        paint: the pictures of a pipeline, with a seed.
        memory: the mode.

    Returns:
        The GPU, whose calls can be counted; nothing is left on it.
    """
    cuda = CudaSimulator()
    with pipeline(root, cuda, memory) as simulated, Pipeline.load(root, "onnxruntime", "cpu") as exact:
        for seed in (1, 2, 3):
            found, expected = (
                [np.asarray(image) for image in paint(each, seed)] for each in (simulated, exact)
            )
            np.testing.assert_array_equal(found, expected)
    assert not cuda.faults
    assert cuda.used == 0, "closing frees everything"
    return cuda
