"""OpenVINO against onnxruntime on the same bundle, and bf16, which onnxruntime has no CPU kernels for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from likeness import psnr

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux1.variants import PARTS as STAGES
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.verify.eager import Eager
from flux_trt.exporter.verify.verify import TOLERANCE, relative_error
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.protocols import Backend
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.pipeline import Pipeline

Get = Callable[..., Path]
PROMPTS = (
    "a red circle at the top left on a white background",
    "a blue square in the center on a green background",
)


def outputs(backend: Backend, root: Path, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    record = Bundle.open(root, check=False).manifest.graph(name)
    graph = backend.load(root / record.graph, name, record)
    found = {key: buffer.numpy().copy() for key, buffer in graph.run(inputs).items()}
    graph.close()
    return found


def paint(root: Path, backend: Backend) -> np.ndarray:
    with Pipeline(Bundle.open(root), backend) as pipeline:
        images = pipeline.generate(PROMPTS, steps=12, guidance=1.0, seed=3, batch=2)
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def exact(bundle: Get) -> np.ndarray:
    return paint(bundle("flux-nano"), connect("onnxruntime", "cpu"))


@pytest.mark.parametrize("name", ["flux-nano", "dev-like"])
@pytest.mark.parametrize("stage", STAGES)
def test_fp32_stages_are_onnxruntimes(checkpoint: Get, bundle: Get, name: str, stage: str) -> None:
    given = recognise(open_checkpoint(str(checkpoint(name)))).case(stage).inputs
    inputs = {key: value.numpy() for key, value in given.items()}
    theirs, ours = (
        outputs(connect(b, "cpu"), bundle(name), stage, inputs) for b in ("onnxruntime", "openvino")
    )
    assert set(ours) == set(theirs)
    for key, expected in theirs.items():
        assert ours[key].dtype == expected.dtype
        limit = 1 / 255 if key == "image" else 1e-4
        assert relative_error(ours[key], expected) <= limit, key


def test_glue(bundle: Get) -> None:
    root, rng = bundle("flux-nano"), np.random.default_rng(0)
    record = Bundle.open(root, check=False).manifest.glue["cfg"]
    known = {"batch": 2, "tokens": 5}
    inputs = {
        each.name: rng.standard_normal([known.get(dim, dim) for dim in each.dims], dtype=np.float32)
        for each in record.inputs
    }
    theirs, ours = (outputs(connect(b, "cpu"), root, "cfg", inputs) for b in ("onnxruntime", "openvino"))
    np.testing.assert_allclose(ours["next_latents"], theirs["next_latents"], rtol=1e-6, atol=1e-6)


def test_fp32_pictures_are_onnxruntimes(bundle: Get, exact: np.ndarray) -> None:
    ours = paint(bundle("flux-nano"), connect("openvino", "cpu"))
    assert (np.abs(ours.astype(int) - exact) <= 1).mean() >= 0.999
    assert exact.std() > 1, "a flat picture would agree with anything"


def test_bf16_is_as_close_as_torch_in_bf16(checkpoint: Get, bundle: Get, exact: np.ndarray) -> None:
    """Pictures of the same bundle: what OpenVINO rounds more than torch may cost a decibel or two."""
    root = bundle("flux-nano", "bf16")
    ours = paint(root, connect("openvino", "cpu"))
    torchs = paint(root, Eager(recognise(open_checkpoint(str(checkpoint("flux-nano"))))))
    assert np.median(psnr(ours, exact)) >= np.median(psnr(torchs, exact)) - 2
    assert np.median(psnr(ours, exact)) < 70, "nothing was rounded: was this fp32?"


def test_one_thread_does_not_die_of_bf16(bundle: Get, exact: np.ndarray) -> None:
    """On a CPU with AMX OpenVINO's kernel for several products of one input divides by zero there."""
    ours = paint(bundle("flux-nano", "bf16"), connect("openvino", "cpu", threads=1))
    assert np.median(psnr(ours, exact)) > 45


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_stay_within_their_rounding(checkpoint: Get, bundle: Get, precision: str) -> None:
    found, root = open_checkpoint(str(checkpoint("flux-nano"))), bundle("flux-nano", precision)
    for stage in ("t5", "conditioner", "denoiser"):
        expected = recognise(found).case(stage)
        inputs = {key: value.numpy() for key, value in expected.inputs.items()}
        ours = outputs(connect("openvino", "cpu"), root, stage, inputs)
        for key, value in ours.items():
            exact = expected.expected[key].detach().numpy()  # by norm: one value may lose more than most
            assert np.linalg.norm(value - exact) <= TOLERANCE[precision] * np.linalg.norm(exact)


@pytest.mark.parametrize("attention", [False, True])
def test_fp8_loses_what_onnxruntime_loses(checkpoint: Get, fp8_bundle: Get, attention: bool) -> None:
    """Both compute the graph's own rounding to E4M3; where a value falls between two, sums in another order
    tip it over, so that they agree in how much is lost, not in every value."""
    root = fp8_bundle("fp32", attention)
    expected = recognise(open_checkpoint(str(checkpoint("dev-like")))).case("denoiser")
    inputs = {key: value.numpy() for key, value in expected.inputs.items()}
    exact = expected.expected["velocity"].detach().numpy()
    theirs, ours = (
        np.linalg.norm(outputs(connect(b, "cpu"), root, "denoiser", inputs)["velocity"] - exact)
        for b in ("onnxruntime", "openvino")
    )
    assert 0.8 * theirs <= ours <= 1.25 * theirs


def test_fp8_with_bf16_around_it_runs(checkpoint: Get, fp8_bundle: Get) -> None:
    expected = recognise(open_checkpoint(str(checkpoint("dev-like")))).case("t5")
    inputs = {key: value.numpy() for key, value in expected.inputs.items()}
    found = outputs(connect("openvino", "cpu"), fp8_bundle("bf16"), "t5", inputs)["text"]
    assert relative_error(found, expected.expected["text"].detach().numpy()) <= TOLERANCE["fp8"]
