"""Build an engine of one `flux::QKNormRope` node on this GPU, run it, and save q and k; a child process.

    python tests/rope_engine_child.py tensorrt|tensorrt-rtx native|plugin CASE.npz OUT.npz

The arrays are float16 and the tables float32. The engine runs twice: queued, and replayed from a CUDA graph.
"""

from __future__ import annotations

import sys

import numpy as np
from rope_case import RopeCase, graph
from trt_network import Network

from flux_trt.runtime.backends.device import Gpu
from flux_trt.runtime.bundle.flavour import FLAVOURS


def main(flavour: str, rope: str, source: str, target: str) -> None:
    trt, gpu = FLAVOURS[flavour].module(), Gpu()
    with np.load(source) as found:
        heads = int(found["heads"])
        tensors = {name: found[name] for name in ("qkv", "q_scale", "k_scale", "cos", "sin")}
    case = RopeCase(tensors, heads, epsilon=1e-6)
    logger = trt.Logger(trt.Logger.WARNING)
    network = Network(trt, graph(case).SerializeToString(), logger, rope)
    assert network.fault is None, network.fault
    assert any("PLUGIN" in kind for kind in network.kinds) == (rope == "plugin"), network.kinds
    plan = network.plan({name: [tensors[name].shape] * 3 for name in ("qkv", "cos", "sin")})
    assert plan is not None
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    buffers = {name: gpu.upload(array) for name, array in tensors.items()}
    for name, array in tensors.items():
        context.set_input_shape(name, array.shape)
    for name in ("q", "k"):
        shape = (case.qkv.shape[0], heads, case.qkv.shape[1], case.tensors["q_scale"].size)
        buffers[name] = gpu.empty(shape, np.float16)
    for name, buffer in buffers.items():
        context.set_tensor_address(name, buffer.pointer)
    assert context.execute_async_v3(gpu.stream)
    first = {name: gpu.read(buffers[name]) for name in ("q", "k")}
    for name in first:
        gpu.write(buffers[name], np.zeros_like(first[name]))
    gpu.record(lambda: context.execute_async_v3(gpu.stream))()
    again = {f"{name}_replayed": gpu.read(buffers[name]) for name in ("q", "k")}
    np.savez(target, **first, **again)


if __name__ == "__main__":
    main(*sys.argv[1:])
