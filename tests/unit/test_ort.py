import numpy as np
import pytest
import tiny_bundle

from flux_trt.runtime import manifest
from flux_trt.runtime.backend import connect
from flux_trt.runtime.errors import BackendError, BundleError


@pytest.fixture(scope="module")
def cpu():
    return connect("onnxruntime", "cpu")


@pytest.fixture(scope="module")
def stages(tiny):
    return manifest.read(tiny).stages


def change(stage, side, index, **update):
    tensors = list(getattr(stage, side))
    tensors[index] = tensors[index].model_copy(update=update)
    return stage.model_copy(update={side: tensors})


def denoiser_inputs(batch=2, tokens=3):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    half = tiny_bundle.HEAD // 2
    return {
        "latents": draw(batch, tokens, tiny_bundle.CHANNELS),
        "dt": draw(batch, tokens, 1),
        "context": draw(batch, tiny_bundle.TEXT, 1),
        "modulation": draw(batch, 3, 1),
        "cos": draw(tiny_bundle.TEXT + tokens, half),
        "sin": draw(tiny_bundle.TEXT + tokens, half),
    }


def test_all_outputs_or_only_those_asked_for(cpu, tiny, stages):
    graph = cpu.load(tiny / "denoiser.onnx", "denoiser", stages["denoiser"])
    inputs = denoiser_inputs()
    found = graph.run(inputs)
    assert set(found) == {"next_latents", "velocity"}
    drift = inputs["modulation"][:, 0] + inputs["modulation"][:, 1] / 8 + inputs["modulation"][:, 2] / 16
    velocity = tiny_bundle.RATE * inputs["latents"] + drift[:, None]
    np.testing.assert_allclose(found["velocity"].numpy(), velocity, rtol=1e-5, atol=1e-6)
    target = np.full_like(inputs["latents"], np.nan)
    into = graph.run(inputs, into={"next_latents": cpu.upload(target)})
    assert set(into) == {"next_latents"}
    # On the CPU the graph has written straight into the array.
    np.testing.assert_array_equal(target, found["next_latents"].numpy())


def test_rows_are_views_and_run_as_inputs(cpu, tiny, stages):
    graph = cpu.load(tiny / "denoiser.onnx", "denoiser", stages["denoiser"])
    inputs = denoiser_inputs()
    steps = np.stack([inputs["modulation"] * k for k in range(4)])
    buffer = cpu.upload(steps)
    for k in (0, 3, 1):
        row = buffer[k]
        assert row.shape == (2, 3, 1)
        assert np.shares_memory(row.numpy(), steps)
        by_row = graph.run({**inputs, "modulation": row})["velocity"].numpy()
        by_array = graph.run({**inputs, "modulation": steps[k].copy()})["velocity"].numpy()
        np.testing.assert_array_equal(by_row, by_array)
    with pytest.raises(IndexError):
        buffer[4]
    with pytest.raises(ValueError, match="cannot be seen as"):
        buffer.reshape(5, 5)


def test_shapes_may_change_between_runs(cpu, tiny, stages):
    graph = cpu.load(tiny / "denoiser.onnx", "denoiser", stages["denoiser"])
    for batch, tokens in ((1, 4), (2, 2), (1, 4)):
        inputs = denoiser_inputs(batch, tokens)
        assert graph.run(inputs)["velocity"].shape == inputs["latents"].shape


def test_results_outlive_the_graph(cpu, tiny, stages):
    graph = cpu.load(tiny / "clip.onnx", "clip", stages["clip"])
    pooled = graph.run({"ids": np.full((1, tiny_bundle.TEXT), 3)})["pooled"]
    graph.close()
    graph.close()
    np.testing.assert_array_equal(pooled.numpy(), [[3]])
    with pytest.raises(BackendError, match="the stage clip is closed"):
        graph.run({"ids": np.zeros((1, tiny_bundle.TEXT), np.int64)})


def test_a_failing_run_is_one_line_with_the_stage(cpu, tiny, stages):
    graph = cpu.load(tiny / "denoiser.onnx", "denoiser", stages["denoiser"])
    inputs = {**denoiser_inputs(), "dt": np.zeros((2, 5, 1), np.float32)}
    with pytest.raises(BackendError, match="the stage denoiser failed") as fault:
        graph.run(inputs)
    assert "\n" not in str(fault.value)
    with pytest.raises(BackendError, match="the stage denoiser failed"):
        graph.run({name: value for name, value in inputs.items() if name != "cos"}, into={})


def test_bf16_is_refused_on_the_cpu_before_the_graph_is_read(cpu, tmp_path, stages):
    stage = stages["clip"].model_copy(update={"precision": "bf16"})
    with pytest.raises(BackendError, match=r"clip is bf16.*or a CUDA GPU, or build with --precision fp32"):
        cpu.load(tmp_path / "nowhere.onnx", "clip", stage)


def test_a_file_that_is_no_graph(cpu, tmp_path, stages):
    (tmp_path / "clip.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"onnxruntime cannot load .*clip\.onnx") as fault:
        cpu.load(tmp_path / "clip.onnx", "clip", stages["clip"])
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("side", "index", "update"),
    [
        ("inputs", 0, {"name": "latent"}),
        ("inputs", 0, {"dtype": "int64"}),
        ("inputs", 0, {"dims": ["batch", "tokens"]}),
        ("inputs", 0, {"dims": ["batch", "tokens", 64]}),
        ("inputs", 0, {"dims": ["batch", "tokens", "channels"]}),
        ("outputs", 1, {"name": "speed"}),
        ("outputs", 0, {"dims": ["batch", "tokens", 64]}),
    ],
)
def test_graph_and_manifest_must_agree(cpu, tiny, stages, side, index, update):
    with pytest.raises(BundleError, match=r"denoiser\.onnx.*the manifest says"):
        cpu.load(tiny / "denoiser.onnx", "denoiser", change(stages["denoiser"], side, index, **update))


def test_an_unknown_backend():
    with pytest.raises(BackendError, match="no backend is called 'directml'"):
        connect("directml", "cpu")


def test_cuda_is_refused_where_it_is_not():
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match=r"has no CUDA.*use --device cpu"):
        connect("onnxruntime", "cuda")
    assert connect("onnxruntime", "auto").device == "cpu"
