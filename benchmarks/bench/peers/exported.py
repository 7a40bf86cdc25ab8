"""A plain `torch.onnx.export` of each module, run by onnxruntime: no graph of ours."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
import torch
from torch import Tensor, nn

from flux_trt.bench.peers.swapped import Function


def convert(module: nn.Module, example: Sequence[Tensor], name: str, threads: int | None = None) -> Function:
    """Export, and open a session on a CPU with onnxruntime's own defaults but one.

    Four networks are four sessions, whose idle threads would spin for the cores that the next one needs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        torch.onnx.export(module, tuple(example), path, dynamo=True, verbose=False)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        values = [tensor.detach().numpy() for tensor in inputs]
        return torch.from_numpy(session.run(None, dict(zip(names, values, strict=True)))[0])

    return run
