"""OpenVINO's own conversion of each torch module (`openvino.convert_model`), compiled with its defaults.

On a CPU with AMX or AVX512-BF16 its default arithmetic is bfloat16; the quality column shows what that costs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flux_trt.bench.peers.swapped import Function

PERFORMANCE: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}


def convert(module: nn.Module, example: Sequence[Tensor], name: str, threads: int | None = None) -> Function:
    """Convert for the example's shapes, and compile for the CPU.

    Raises:
        ModuleNotFoundError: openvino is not installed.
    """
    wanted = PERFORMANCE | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    openvino = importlib.import_module("openvino")
    model = openvino.convert_model(module, example_input=tuple(example))
    model.reshape({port: list(each.shape) for port, each in zip(model.inputs, example, strict=True)})
    compiled = openvino.Core().compile_model(model, "CPU", wanted)
    request = compiled.create_infer_request()

    def run(*inputs: Tensor) -> Tensor:
        found = request.infer([tensor.detach().numpy() for tensor in inputs], share_inputs=True)
        return torch.from_numpy(found[compiled.output(0)].copy())

    return run
