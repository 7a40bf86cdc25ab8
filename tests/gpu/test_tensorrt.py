"""TensorRT's engines on a real GPU: pictures in every memory mode, recordings, and where memory goes."""

import gc
import importlib.util
import shutil

import numpy as np
import pytest
from at_gpu import FAULT, pixels

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends.device import Gpu
from flux_trt.runtime.bundle.flavour import FLAVOURS
from flux_trt.runtime.errors import BackendError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(FAULT is not None, reason=f"needs a GPU: {FAULT}")]
MODES = ("resident", "sequential", "streaming")
PROMPT = "a red circle in the center on a white background"
KEPT = 32 << 20  # bytes; what a driver may keep of what was freed


@pytest.fixture(scope="module")
def gpu():
    made = Gpu()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def flavour(request, gpu):
    """Either TensorRT that is installed and made for this GPU."""
    if importlib.util.find_spec(request.param.replace("-", "_")) is None:
        pytest.skip(f"needs {request.param}")
    made_for = FLAVOURS[request.param].capabilities
    if made_for and gpu.capability not in made_for:
        pytest.skip(f"{request.param} is not made for sm {gpu.capability}")
    return request.param


def with_engines(bundle, out, flavour, gpu, rope="native", streaming=True):
    from flux_trt.exporter.engines.engine import Options, build_engines

    shutil.copytree(bundle, out)
    wanted = {"flavour": flavour, "capabilities": (gpu.capability,), "rope": rope}
    build_engines(out, Options(**wanted, weight_streaming=streaming))
    return out


@pytest.fixture(scope="module")
def engines(flavour, gpu, bundle, tmp_path_factory):
    """flux-nano with engines for the present GPU."""
    return with_engines(bundle("flux-nano"), tmp_path_factory.mktemp("engines") / "bundle", flavour, gpu)


@pytest.fixture(scope="module")
def plain_engines(flavour, gpu, bundle, tmp_path_factory):
    """The same without weight streaming: all weights lie on the GPU from loading on."""
    out = tmp_path_factory.mktemp("plain") / "bundle"
    return with_engines(bundle("flux-nano"), out, flavour, gpu, streaming=False)


def paint(root, backend, **more):
    loading = {name: more.pop(name) for name in ("memory", "record", "device") if name in more}
    with Pipeline.load(root, backend, **loading) as pipeline:
        return pixels(pipeline.generate(PROMPT, steps=4, guidance=1.0, **more))


def alike(found, exact):
    return np.mean([np.abs(a - b) <= 2 for a, b in zip(found, exact, strict=True)]) >= 0.99


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("memory", MODES)
def test_pictures_are_those_of_onnxruntime(engines, flavour, memory, record):
    with Pipeline.load(engines, flavour, memory=memory, record=record) as there:
        found = pixels(there.generate(PROMPT, count=3, steps=4, guidance=1.0))
        if record and memory != "sequential":
            assert any(loop.recorded for loop in there.loops)
    assert alike(found, paint(engines, "onnxruntime", device="cpu", count=3))


def test_the_plugin_paints_the_same(flavour, gpu, bundle, tmp_path):
    root = with_engines(bundle("flux-nano"), tmp_path / "bundle", flavour, gpu, rope="plugin")
    assert alike(paint(root, flavour, count=3), paint(root, "onnxruntime", device="cpu", count=3))


def test_a_size_without_engine_is_refused_in_pixels(engines, flavour):
    with (
        Pipeline.load(engines, flavour) as there,
        pytest.raises(BackendError, match=r"was not built for 128x128; .*--sizes 128x128"),
    ):
        there.generate("a", size=(128, 128), steps=2)


def test_what_an_engine_says_of_recording_is_so(engines, flavour, caplog):
    caplog.set_level("INFO")
    with Pipeline.load(engines, flavour) as there:
        there.generate(PROMPT, count=3, steps=4, guidance=1.0)
        recorded = any(loop.recorded for loop in there.loops)
    told = [line for line in caplog.messages if "denoiser" in line and "be recorded" in line]
    assert told
    assert recorded == all("can be recorded" in line for line in told)


def test_memory_comes_back_when_a_pipeline_is_closed(engines, flavour, gpu):
    """After the first picture of a process, which loads kernels and libraries for good."""
    free = []
    for _ in range(3):
        paint(engines, flavour, count=2)
        gc.collect()
        free.append(gpu.free_bytes())
    assert max(free[1:]) - min(free[1:]) <= KEPT
    assert free[0] - free[-1] <= KEPT


def test_a_closed_stage_gives_its_weights_back(plain_engines, flavour, gpu):
    paint(plain_engines, flavour)
    with Pipeline.load(plain_engines, flavour) as there:
        backend, stage = there.backend, there.bundle.stage("denoiser")
        gc.collect()
        before = gpu.free_bytes()
        loaded = [backend.load(there.bundle.root / stage.graph, "denoiser", stage) for _ in range(8)]
        taken = before - gpu.free_bytes()
        for each in loaded:
            each.close()
        del loaded, each
        gc.collect()
        left = before - gpu.free_bytes()
        weights = backend.weight_bytes(there.bundle.root / stage.graph, "denoiser", stage)
    assert taken >= 4 * weights, "eight copies take room"
    assert left <= taken / 2


def test_streamed_weights_come_with_the_first_context(engines, flavour, gpu):
    paint(engines, flavour)
    gc.collect()
    before = gpu.free_bytes()
    with Pipeline.load(engines, flavour, memory="streaming") as there:
        plans = sum(
            there.backend.weight_bytes(None, name, stage)
            for name, stage in there.bundle.manifest.stages.items()
        )
        loaded = before - gpu.free_bytes()
        there.generate(PROMPT, steps=2, guidance=1.0)
        painted = before - gpu.free_bytes()
    assert loaded <= painted
    assert loaded <= plans / 2 + KEPT, "weights were brought before a context was made"


def test_a_small_arena_is_enough_for_any_order_of_sizes(flavour, gpu, bundle, tmp_path):
    """The arena is as large as the shape that runs says; recordings survive that it moves."""
    from flux_trt.exporter.engines.engine import Options, build_engines
    from flux_trt.exporter.engines.profile import Shapes

    root = shutil.copytree(bundle("flux-nano"), tmp_path / "bundle")
    options = Options(flavour=flavour, capabilities=(gpu.capability,))
    build_engines(root, options, Shapes(((64, 64), (128, 128)), max_batch=2))
    sizes = [(64, 64), (128, 128), (64, 64), (48, 96), (128, 128), (64, 64)]
    with Pipeline.load(root, flavour) as there, Pipeline.load(root, "onnxruntime", device="cpu") as here:
        for size in sizes:
            wanted = {"size": size, "steps": 3, "guidance": 1.0, "count": 2}
            assert alike(pixels(there.generate(PROMPT, **wanted)), pixels(here.generate(PROMPT, **wanted)))


@pytest.fixture(scope="module")
def with_branches(flavour, gpu, lora_bundle, tmp_path_factory):
    """dev-like with branches for LoRAs, and its engines."""
    return with_engines(lora_bundle, tmp_path_factory.mktemp("branches") / "bundle", flavour, gpu)


def test_a_recording_sees_another_lora(with_branches, flavour, checkpoint, tmp_path, monkeypatch):
    import loras

    source = checkpoint("dev-like")
    files = [
        loras.save(
            tmp_path / f"{seed}.safetensors", loras.FORMS["peft"](source, loras.update(source, seed, 0.12))
        )
        for seed in (11, 12)
    ]
    made = []
    record = Gpu.record
    monkeypatch.setattr(Gpu, "record", lambda self, work: made.append(1) or record(self, work))
    wanted = {"prompt": "a red circle", "size": (64, 64), "steps": 3}
    with (
        Pipeline.load(with_branches, flavour) as there,
        Pipeline.load(with_branches, "onnxruntime", device="cpu") as here,
    ):
        found, count = [], []
        for file in (files[0], files[0], files[1], files[0]):
            found.append(pixels(there.generate(**wanted, lora=[str(file)])))
            count.append(len(made))
            assert alike(found[-1], pixels(here.generate(**wanted, lora=[str(file)])))
    np.testing.assert_array_equal(found[1], found[3])
    assert np.abs(found[1][0] - found[2][0]).max() > 2, "the two LoRAs paint different pictures"
    assert count[1] == count[3], "another LoRA needs no new recording"


def test_pictures_that_share_steps_are_those_painted_alone(engines, flavour):
    from flux_trt.runtime.stepwise import Stepwise
    from flux_trt.runtime.tasks.request import Request

    with Pipeline.load(engines, flavour) as there:
        wanted = [Request.of(there.bundle.manifest, PROMPT, steps=steps, seed=steps) for steps in (4, 5, 6)]
        alone = [pixels(each.image for each in there.paint(request))[0] for request in wanted]
        steps = Stepwise(there)
        courses = [steps.begin(steps.prepare(request), 0) for request in wanted]
        together = {}
        while under_way := [each for each in courses if each.left]:
            assert steps.step(under_way) == {}
            together |= {id(each): pixels([each.finish().image])[0] for each in under_way if not each.left}
        steps.close()
    assert alike([together[id(each)] for each in courses], alone)
