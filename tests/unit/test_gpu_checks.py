"""What tests/gpu asks of a GPU, asked of the simulated one, so that the checks themselves have run."""

import importlib.util
import inspect
import shutil
from pathlib import Path

import pytest
import simulator_bundle
from simulator_cuda import CudaSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends.device import Gpu

CHECKS = Path(__file__).parents[1] / "gpu" / "test_tensorrt.py"
FLAVOUR = "tensorrt-rtx"
PROFILE = {
    **simulator_bundle.WIDE,
    "batch": (1, 1, 4),
    "text": (1, 32, 512),
    "sequence": (1, 48, 1024),
    "steps": (1, 4, 28),
}
NARROW = {
    **PROFILE,
    **{"tokens": (1, 16, 36), "h": (1, 4, 6), "w": (1, 4, 6)},
    **{"height": (16, 64, 96), "width": (16, 64, 96)},
}
"""As engines for 64x64 are: they do not take 128x128."""
NOT_SIMULATED = {
    "test_the_plugin_paints_the_same",  # its kernel is tested by tests/interpreted
}
"""With what stands in for them."""


@pytest.fixture(scope="module")
def cuda():
    return CudaSimulator()


@pytest.fixture(scope="module")
def checks(cuda):
    """The module of checks, with the simulator in the GPU's place."""
    spec = importlib.util.spec_from_file_location("gpu_checks", CHECKS)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)

    class Simulated(Pipeline):
        @classmethod
        def load(cls, root, backend, device="auto", memory="resident", record=True):
            if backend != FLAVOUR:
                return Pipeline.load(root, backend, device)
            return simulator_bundle.pipeline(root, cuda, memory, record)

    found.Pipeline = Simulated
    return found


@pytest.fixture(scope="module")
def gpu(cuda):
    made = Gpu(cuda)
    yield made
    made.close()


@pytest.fixture(scope="module")
def given(request, cuda, gpu, tiny, checkpoint, tmp_path_factory):
    """What the checks' own fixtures would give, by name."""
    made = {}

    def with_engines(name, source, profile=PROFILE, streaming=True):
        if name not in made:
            made[name] = shutil.copytree(source, tmp_path_factory.mktemp(name) / "bundle")
            simulator_bundle.add_engines(
                made[name], profiles=[profile], weights=1 << 18, weight_streaming=streaming
            )
        return made[name]

    return {
        "flavour": lambda: FLAVOUR,
        "gpu": lambda: gpu,
        "bundle": lambda: lambda name: tiny,
        "checkpoint": lambda: checkpoint,
        "engines": lambda: with_engines("engines", tiny, NARROW),
        "plain_engines": lambda: with_engines("plain", tiny, NARROW, False),
        "with_branches": lambda: with_engines("branches", request.getfixturevalue("lora_bundle")),
    }


def cases():
    """Every check with every value of its parameters."""
    spec = importlib.util.spec_from_file_location("gpu_checks_listed", CHECKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, check in vars(module).items():
        if not name.startswith("test_") or name in NOT_SIMULATED:
            continue
        chosen = [{}]
        for mark in getattr(check, "pytestmark", []):
            chosen = [{**each, mark.args[0]: value} for each in chosen for value in mark.args[1]]
        yield from (pytest.param(name, each, id=f"{name} {list(each.values())}") for each in chosen)


@pytest.mark.parametrize(("name", "chosen"), list(cases()))
def test_the_check_holds_on_the_simulator(checks, given, cuda, name, chosen, request, monkeypatch):
    if name == "test_a_small_arena_is_enough_for_any_order_of_sizes":
        from flux_trt.exporter.engines import engine

        def build(root, options, shapes):
            simulator_bundle.add_engines(root, profiles=[PROFILE])

        monkeypatch.setattr(engine, "build_engines", build)
    check = getattr(checks, name)
    wanted = [each for each in inspect.signature(check).parameters if each not in chosen]
    arguments = {each: given[each]() if each in given else request.getfixturevalue(each) for each in wanted}
    check(**arguments, **chosen)
    assert not cuda.faults
