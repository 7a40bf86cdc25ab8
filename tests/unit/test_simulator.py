"""The simulator cannot drift: its classes have the names, members and parameters of the real ones."""

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import re
import subprocess
import sys

import pytest
import simulator_tensorrt
from simulator_cuda import CudaSimulator

CLASSES = ["Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "ILogger"]
ENUMS = [
    "TensorIOMode",
    "DataType",
    "ExecutionContextAllocationStrategy",
    "DynamicShapesKernelSpecializationStrategy",
]
ONLY_RTX = {
    "DynamicShapesKernelSpecializationStrategy",
    "dynamic_shapes_kernel_specialization_strategy",
    "is_stream_capturable",
}

REPORT = """
import json, sys, numpy as np, tensorrt_rtx as trt
found = {}
for name in json.loads(sys.argv[1]):
    kind = getattr(trt, name)
    values = {each: getattr(kind, each) for each in dir(kind)}
    found[name] = {each: value.__doc__ if callable(value) else None for each, value in values.items()}
kinds = ("FLOAT", "HALF", "INT64", "UINT8")
types = {each: np.dtype(trt.nptype(getattr(trt.DataType, each))).name for each in kinds}
print(json.dumps({"classes": found, "types": types, "version": trt.__version__}))
"""


def members(kind):
    """Public methods with their parameters, and properties and attributes with None."""
    found = {}
    for name in dir(kind):
        if name.startswith("_"):
            continue
        value = inspect.getattr_static(kind, name)
        found[name] = list(inspect.signature(value).parameters)[1:] if inspect.isfunction(value) else None
    made = inspect.getsource(kind.__init__) if "__init__" in vars(kind) else ""
    return {**found, **dict.fromkeys(re.findall(r"self\.([a-z]\w*)\b[^=(]*= ", made))}


def simulated():
    trt = simulator_tensorrt.module(CudaSimulator())
    return {name: members(getattr(trt, name)) for name in CLASSES}


def overloads(doc, name):
    """Parameter lists in a pybind11 docstring."""
    for line in re.findall(rf"{name}\(self: [^)]*\) ->", doc):
        inside = line[line.index("(") + 1 : line.rindex(")")]
        yield [part.split(":")[0].strip() for part in re.split(r",(?![^\[<]*[\]>])", inside)[1:]]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
def test_the_classes_are_those_of_tensorrt_rtx():
    child = subprocess.run(
        [sys.executable, "-c", REPORT, json.dumps(CLASSES + ENUMS)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    real = json.loads(child.stdout)
    checked = 0
    for kind, mine in simulated().items():
        for name, parameters in mine.items():
            assert name in real["classes"][kind], f"{kind}.{name} is not in tensorrt_rtx"
            if parameters is not None:
                assert parameters in list(overloads(real["classes"][kind][name], name)), f"{kind}.{name}"
                checked += 1
    assert checked >= 19
    for kind in ENUMS:
        names = [each.name for each in getattr(simulator_tensorrt, kind)]
        assert set(names) <= set(real["classes"][kind]), kind
    assert real["types"] == {each.name: each.value for each in simulator_tensorrt.DataType}


def stubs():
    try:
        files = importlib.metadata.files("tensorrt-stubs") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next(each.locate() for each in files if each.match("tensorrt_bindings/tensorrt.pyi"))


@pytest.mark.skipif(
    stubs() is None, reason="needs pip install --no-deps tensorrt-stubs, which is in no extra"
)
def test_the_classes_are_those_of_the_tensorrt_stubs():
    # The file as a whole is not valid Python; class by class it is, where it matters.
    parts = re.split(r"^(?=class )", stubs().read_text(encoding="utf-8"), flags=re.M)
    text = {part[6:].partition(":")[0].partition("(")[0]: part for part in parts[1:]}
    real = {kind: ast.parse(text[kind]).body[0].body for kind in CLASSES}
    checked = 0
    for kind, mine in simulated().items():
        there: dict[str, list] = {}
        for node in real[kind]:
            if isinstance(node, ast.FunctionDef):
                there.setdefault(node.name, []).append([each.arg for each in node.args.args][1:])
            elif isinstance(node, ast.AnnAssign):
                there.setdefault(node.target.id, [])
        for name, parameters in mine.items():
            if name in ONLY_RTX:
                continue
            assert name in there, f"{kind}.{name} is not in the stubs"
            if parameters is not None:
                assert parameters in there[name], f"{kind}.{name}"
                checked += 1
    assert checked >= 19
    assert not set(ENUMS) - ONLY_RTX - set(text)


def test_the_simulator_refuses_what_tensorrt_refuses(tiny):
    """Each rule by itself: the product's code must not be what keeps it."""
    import numpy as np
    import simulator_bundle

    from flux_trt.runtime.bundle import manifest

    cuda = CudaSimulator()
    trt = simulator_tensorrt.module(cuda)
    stage = manifest.read(tiny).stages["clip"]
    plan = {
        "kind": simulator_tensorrt.MAGIC,
        "version": simulator_tensorrt.VERSION,
        "capabilities": ["8.9"],
        "graph": str(tiny / "clip.onnx"),
        "inputs": [each.model_dump() for each in stage.inputs],
        "outputs": [each.model_dump() for each in stage.outputs],
        "profiles": [{"ids": [[1, 6], [1, 6], [2, 6]]}, {"ids": [[3, 6], [3, 6], [4, 6]]}],
        "weights": 4096,
        "streamable": False,
        "recordable": True,
        "user_allocation": True,
    }
    said = []

    class Log(trt.ILogger):
        def log(self, severity, msg):
            said.append(msg)

    runtime = trt.Runtime(Log())
    for wrong in (b"", b"[]", json.dumps({**plan, "version": "1"}), json.dumps({**plan, "capabilities": []})):
        data = wrong if isinstance(wrong, bytes) else wrong.encode()
        assert runtime.deserialize_cuda_engine(data) is None
    assert len(said) == 4
    engine = runtime.deserialize_cuda_engine(json.dumps(plan).encode())
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    context = engine.create_execution_context(config)
    stream = cuda.cudaStreamCreateWithFlags(0)[1]

    def memory(nbytes):
        return cuda.cudaMalloc(nbytes)[1]

    def refused(word, found=False):
        return found is False and word in said[-1]

    assert refused("shape of ids", context.execute_async_v3(stream))
    assert refused("not in profile 0", context.set_input_shape("ids", (3, 6)))
    assert refused("not in profile 0", context.set_input_shape("ids", (1, 6, 1)))
    assert refused("is no input", context.set_input_shape("pooled", (1, 1)))
    assert context.set_input_shape("ids", (2, 6))
    assert (context.infer_shapes(), context.get_tensor_shape("pooled")) == ([], (2, 1))
    assert refused("ids is not bound", context.execute_async_v3(stream))
    ids, pooled = memory(96), memory(8)
    assert refused("not aligned", context.set_tensor_address("ids", ids + 8))
    assert refused("unknown", context.set_tensor_address("id", ids))
    assert context.set_tensor_address("ids", ids)
    assert refused("pooled is not bound", context.execute_async_v3(stream))
    assert context.set_tensor_address("pooled", pooled)
    assert refused("no device memory", context.execute_async_v3(stream))
    need = context.update_device_memory_size_for_shapes()
    arena = memory(need)
    context.set_device_memory(arena, need - 1)
    assert refused("will not do", context.execute_async_v3(stream) and None) or "no device memory" in said[-1]
    context.set_device_memory(arena, need)
    global_mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
    cuda.cudaStreamBeginCapture(stream, global_mode)
    assert refused("capturing", context.execute_async_v3(stream)), "a first run cannot be captured"
    assert cuda.cudaStreamEndCapture(stream)[0] != 0
    assert context.execute_async_v3(stream)
    cuda.cudaStreamSynchronize(stream)
    assert not cuda.faults
    cuda.cudaStreamBeginCapture(stream, global_mode)
    assert context.execute_async_v3(stream)
    code, graph = cuda.cudaStreamEndCapture(stream)
    assert code == 0
    assert context.is_stream_capturable(stream)
    engine._plan["user_allocation"] = False
    assert not context.is_stream_capturable(stream)
    cuda.cudaStreamBeginCapture(stream, global_mode)
    assert refused("capturing", context.execute_async_v3(stream)), "it may allocate, though it has run before"
    assert cuda.cudaStreamEndCapture(stream)[0] != 0
    engine._plan["user_allocation"] = True
    values = np.arange(12, dtype=np.int64).reshape(2, 6)
    kind = cuda.cudaMemcpyKind
    cuda.cudaMemcpyAsync(ids, values.ctypes.data, 96, kind.cudaMemcpyHostToDevice, stream)
    cuda.cudaGraphLaunch(cuda.cudaGraphInstantiate(graph, 0)[1], stream)
    out = np.zeros(2, np.float32)
    cuda.cudaMemcpyAsync(out.ctypes.data, pooled, 8, kind.cudaMemcpyDeviceToHost, stream)
    assert (out == 0).all(), "nothing has run yet"
    cuda.cudaStreamSynchronize(stream)
    assert out.tolist() == [2.5, 8.5]
    assert context.set_optimization_profile_async(1, stream)
    assert refused("shape of ids", context.execute_async_v3(stream))
    assert refused("profile 2", context.set_optimization_profile_async(2, stream))
    assert context.set_input_shape("ids", (3, 6))
    context.update_device_memory_size_for_shapes()
    context.set_device_memory(memory(1 << 12), 1 << 12)
    assert context.execute_async_v3(stream)
    assert cuda.cudaStreamSynchronize(stream)[0] == cuda.cudaError_t.cudaErrorIllegalAddress
    assert "144 bytes" in cuda.faults[0], "ids has grown beyond its memory"
    assert simulator_bundle.VERSION == simulator_tensorrt.VERSION
