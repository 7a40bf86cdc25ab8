"""What a stage takes is found by name among what others give, and its type is that of the contract."""

import json
import shutil

import numpy as np
import pytest
import simulator_bundle
import tiny_bundle
from simulator_cuda import CudaSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends.device import DeviceBuffer
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import Flow, branches, together
from flux_trt.runtime.errors import BundleError, RequestError

HALF = {"context", "cos", "sin"}
"""What the denoiser takes in float16, in `half`."""


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The tiny bundle with float16 between conditioner and denoiser, and in what the loop makes itself."""
    return tiny_bundle.build(tmp_path_factory.mktemp("half") / "bundle", half=HALF)


def changed(tiny, tmp_path, change):
    root = shutil.copytree(tiny, tmp_path / "bundle")
    fields = json.loads((root / manifest.NAME).read_text())
    change(fields)
    (root / manifest.NAME).write_text(json.dumps(fields))
    return Bundle.open(root)


def pictures(pipeline):
    found = pipeline.generate(["a red circle", "left"], count=2, steps=3, size=(80, 48), batch=2)
    return [np.asarray(image) for image in found]


def test_stages_are_found_by_what_they_give(tiny):
    flow = Flow.of(Bundle.open(tiny))
    assert flow.encoders == ("clip", "t5")
    assert flow.before == ("conditioner",)
    assert set(flow.conditions) == {"context", "modulation"}
    assert flow.stages == ("clip", "t5", "conditioner", "denoiser", "vae_decoder")
    assert flow.text({"pooled": np.zeros((2, 1)), "text": np.zeros((2, 6, 1))}) == 6
    assert flow.text({"modulation": np.zeros((3, 2, 3, 1)), "context": np.zeros((2, 7, 1))}) == 7
    assert flow.text({"pooled": np.zeros((2, 1))}) == 0


def test_a_stage_may_stand_between_the_others(tmp_path):
    """Two stages before the loop, one of which takes what the other gives, and any name for each."""
    root = tiny_bundle.build(tmp_path / "bundle", apart=True)
    flow = Flow.of(Bundle.open(root))
    assert flow.before == ("time", "text_projection")
    whole = tiny_bundle.build(tmp_path / "whole")
    with Pipeline.load(root, "onnxruntime", "cpu") as mine, Pipeline.load(whole, "onnxruntime", "cpu") as one:
        np.testing.assert_array_equal(pictures(mine), pictures(one))


@pytest.mark.parametrize("memory", ["resident", "sequential", "streaming"])
def test_stages_before_the_loop_on_a_gpu(tiny, tmp_path, memory):
    root = tiny_bundle.build(tmp_path / "bundle", apart=True)
    simulator_bundle.add_engines(root, weight_streaming=True)
    cuda = CudaSimulator()
    with (
        simulator_bundle.pipeline(root, cuda, memory) as pipeline,
        Pipeline.load(tiny, "onnxruntime", "cpu") as exact,
    ):
        for _ in range(2):
            np.testing.assert_array_equal(pictures(pipeline), pictures(exact))
    assert not cuda.faults


def test_an_encoder_is_given_the_mask_that_it_takes(tiny, tmp_path):
    def mask(fields):
        fields["tokenizers"]["t5"]["mask"] = True

    root = tiny_bundle.build(tmp_path / "bundle", mask=True, patch_manifest=mask)
    with Pipeline.load(root, "onnxruntime", "cpu") as mine:
        found = mine.encode(["a red", "left"])["text"][..., 0]
    np.testing.assert_array_equal(found, [[1, 4, 5, 2, -1, -1], [1, 9, 2, -1, -1, -1]])
    with pytest.raises(ValueError, match="t5 and t5 disagree about the mask"):
        tiny_bundle.build(tmp_path / "other", mask=True)


def test_windows_as_long_as_their_prompts(tiny, tmp_path):
    """Each prompt has its own; text enters the tiny denoiser with weight zero, so the pictures stay."""

    def widen(fields):
        fields["tokenizers"]["t5"]["pad"]["multiple"] = 2

    bundle = changed(tiny, tmp_path, widen)
    asked = {"prompt": ["a red circle", "left", "blue square left a"], "size": (48, 32), "steps": 2}
    with (
        Pipeline.load(bundle.root, "onnxruntime", "cpu") as mine,
        Pipeline.load(tiny, "onnxruntime", "cpu") as exact,
    ):
        for one, other in zip(mine.generate(**asked), exact.generate(**asked), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        lengths = [mine.encode([prompt])["text"].shape[1] for prompt in asked["prompt"]]
        assert lengths == [6, 4, 6]
        assert mine.generate(["left", "blue"], batch=2)
        for one, other in zip(mine.generate(**asked, batch=2), exact.generate(**asked), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_what_nobody_gives(tiny, tmp_path):
    bundle = changed(tiny, tmp_path, lambda fields: fields["stages"].pop("conditioner"))
    with pytest.raises(BundleError, match="partial bundle: no stage gives context, which denoiser takes"):
        Flow.of(bundle)


def test_both_ends_of_a_name_must_agree(tiny, tmp_path):
    def widen(fields):
        fields["stages"]["conditioner"]["outputs"][0]["dims"][2] = 4

    with pytest.raises(BundleError, match=r"conditioner gives modulation as float32 .*4.*denoiser takes it"):
        Flow.of(changed(tiny, tmp_path, widen))


def test_two_that_give_the_same_name(tiny, tmp_path):
    def rename(fields):
        fields["stages"]["t5"]["outputs"][0]["name"] = "pooled"

    with pytest.raises(BundleError, match="clip and t5 both give pooled"):
        Flow.of(changed(tiny, tmp_path, rename))


def test_stages_that_wait_for_each_other(tiny, tmp_path):
    def circle(fields):
        given = fields["stages"]["conditioner"]
        given["inputs"].append(given["outputs"][1])

    with pytest.raises(BundleError, match="no stage gives context, which conditioner takes"):
        Flow.of(changed(tiny, tmp_path, circle))


def test_copies_of_different_windows_are_apart():
    texts = [{"text": np.full((1, length, 2), length)} for length in (80, 80, 160, 160)]
    assert [each["text"].shape for each in branches(texts, 2)] == [(2, 80, 2), (2, 160, 2)]
    assert [each["text"].shape for each in branches(texts[:2], 2)] == [(2, 80, 2)]


def test_prompts_of_different_windows_are_not_one_batch():
    texts = [{"text": np.zeros((1, length, 2))} for length in (80, 160)]
    with pytest.raises(RequestError, match="80, 160 tokens long; use --batch 1"):
        together(texts)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_half_precision_between_stages(tiny, half, backend):
    """What is float16 enters the tiny denoiser with weight zero: the pictures stay."""
    with Pipeline.load(half, backend, "cpu") as mine, Pipeline.load(tiny, backend, "cpu") as exact:
        np.testing.assert_array_equal(pictures(mine), pictures(exact))
        conditions = mine.condition(mine.encode(["a red"]), np.float32([1, 0.5, 0]), 3.5)
        assert {name: value.numpy().dtype for name, value in conditions.items()} == {
            "context": np.float16,
            "modulation": np.float32,
        }


@pytest.mark.parametrize("memory", ["resident", "sequential", "streaming"])
def test_half_precision_on_a_gpu(tiny, half, tmp_path, memory):
    root = shutil.copytree(half, tmp_path / "bundle")
    simulator_bundle.add_engines(root, weight_streaming=True)
    cuda = CudaSimulator()
    with (
        simulator_bundle.pipeline(root, cuda, memory) as pipeline,
        Pipeline.load(tiny, "onnxruntime", "cpu") as exact,
    ):
        for _ in range(3):
            np.testing.assert_array_equal(pictures(pipeline), pictures(exact))
        (loop,) = pipeline.loops
        held = {name: buffer.dtype for name, buffer in loop._held.items() if isinstance(buffer, DeviceBuffer)}
        assert {name for name, dtype in held.items() if dtype == np.float16} == HALF & set(held)
        assert held["latents"] == np.float32
    assert cuda.calls["cudaGraphLaunch"] >= 1
    assert not cuda.faults
