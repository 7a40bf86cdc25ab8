"""Every backend of a CPU is held to the same contract."""

import numpy as np
import pytest
import tiny_bundle

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import BackendError, BundleError


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def cpu(name):
    return connect(name, "cpu")


@pytest.fixture(scope="module")
def stages(tiny):
    return manifest.read(tiny).stages


@pytest.fixture(scope="module")
def denoiser(cpu, tiny, stages):
    return cpu.load(tiny / "denoiser.onnx", "denoiser", stages["denoiser"])


def draw(batch=2, tokens=3):
    rng = np.random.default_rng(0)

    def floats(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    half = tiny_bundle.HEAD // 2
    return {
        "latents": floats(batch, tokens, tiny_bundle.CHANNELS),
        "dt": floats(batch, tokens, 1),
        "context": floats(batch, tiny_bundle.TEXT, 1),
        "modulation": floats(batch, 3, 1),
        "cos": floats(tiny_bundle.TEXT + tokens, half),
        "sin": floats(tiny_bundle.TEXT + tokens, half),
    }


def velocity(inputs):
    drift = inputs["modulation"][:, 0] + inputs["modulation"][:, 1] / 8 + inputs["modulation"][:, 2] / 16
    return tiny_bundle.RATE * inputs["latents"] + drift[:, None]


def test_all_outputs_or_only_those_asked_for(cpu, denoiser):
    inputs = draw()
    found = denoiser.run(inputs)
    assert set(found) == {"next_latents", "velocity"}
    np.testing.assert_allclose(found["velocity"].numpy(), velocity(inputs), rtol=1e-5, atol=1e-6)
    target = np.full_like(inputs["latents"], np.nan)
    into = denoiser.run(inputs, into={"next_latents": cpu.upload(target)})
    assert set(into) == {"next_latents"}
    # The graph has written straight into the array.
    np.testing.assert_array_equal(target, found["next_latents"].numpy())


def test_a_run_writes_only_where_it_is_told(cpu, denoiser):
    """OpenVINO computes every output: what is not asked for must not go where an earlier run wrote."""
    inputs = draw()
    first, second = np.full_like(inputs["latents"], np.nan), np.full_like(inputs["latents"], np.nan)
    earlier = denoiser.run(inputs)
    denoiser.run(inputs, into={"next_latents": cpu.upload(first)})
    kept = first.copy(), earlier["next_latents"].numpy().copy(), earlier["velocity"].numpy().copy()
    other = {**inputs, "latents": inputs["latents"] + 1}
    denoiser.run(other, into={"velocity": cpu.upload(second)})
    np.testing.assert_allclose(second, velocity(other), rtol=1e-5, atol=1e-6)
    denoiser.run(other)
    now = first, earlier["next_latents"].numpy(), earlier["velocity"].numpy()
    for before, after in zip(kept, now, strict=True):
        np.testing.assert_array_equal(before, after)


def test_inputs_are_read_anew(denoiser):
    """A bound array that changes in place is not a stale one; one that may not be shared is copied."""
    inputs = draw()
    before = denoiser.run(inputs)["velocity"].numpy()
    inputs["latents"] += 1
    np.testing.assert_allclose(denoiser.run(inputs)["velocity"].numpy(), before - 0.5, rtol=1e-4, atol=1e-5)
    inputs["latents"] -= 1
    for each in inputs.values():
        each.flags.writeable = False
    np.testing.assert_allclose(denoiser.run(inputs)["velocity"].numpy(), before, rtol=1e-5, atol=1e-6)


def test_rows_are_views_and_run_as_inputs(cpu, denoiser):
    inputs = draw()
    steps = np.stack([inputs["modulation"] * k for k in range(4)])
    buffer = cpu.upload(steps)
    for k in (0, 3, 1):
        row = buffer[k]
        assert row.shape == (2, 3, 1)
        assert row.on_host
        assert np.shares_memory(row.numpy(), steps)
        by_row = denoiser.run({**inputs, "modulation": row})["velocity"].numpy()
        by_array = denoiser.run({**inputs, "modulation": steps[k].copy()})["velocity"].numpy()
        np.testing.assert_array_equal(by_row, by_array)
    assert buffer.head(2).shape == (2, 2, 3, 1)
    assert np.shares_memory(buffer.head(2).reshape(4, 3).numpy(), steps)
    for fault in (lambda: buffer[4], lambda: buffer[-1], lambda: buffer.head(5), lambda: buffer.head(0)):
        with pytest.raises(IndexError):
            fault()
    with pytest.raises(ValueError, match="cannot be seen as"):
        buffer.reshape(5, 5)


def test_shapes_may_change_between_runs(denoiser):
    for batch, tokens in ((1, 4), (2, 2), (1, 4)):
        inputs = draw(batch, tokens)
        np.testing.assert_allclose(
            denoiser.run(inputs)["velocity"].numpy(), velocity(inputs), rtol=1e-5, atol=1e-6
        )


def test_results_outlive_the_graph(cpu, tiny, stages):
    graph = cpu.load(tiny / "clip.onnx", "clip", stages["clip"])
    pooled = graph.run({"ids": np.full((1, tiny_bundle.TEXT), 3)})["pooled"]
    graph.close()
    graph.close()
    np.testing.assert_array_equal(pooled.numpy(), [[3]])
    with pytest.raises(BackendError, match="the stage clip is closed; load the pipeline again"):
        graph.run({"ids": np.zeros((1, tiny_bundle.TEXT), np.int64)})


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("dt", np.zeros((2, 5, 1), np.float32)),
        ("latents", np.zeros((2, 3, 7), np.float32)),
        ("latents", np.zeros((2, 3), np.float32)),
        ("latents", np.zeros((2, 3, tiny_bundle.CHANNELS), np.float64)),
    ],
)
def test_a_failing_run_is_one_line_with_the_stage(denoiser, tensor, value):
    with pytest.raises(BackendError, match="the stage denoiser failed: ") as fault:
        denoiser.run({**draw(), tensor: value})
    assert "\n" not in str(fault.value)
    assert "Exception from" not in str(fault.value)
    inputs = draw()
    np.testing.assert_allclose(
        denoiser.run(inputs)["velocity"].numpy(), velocity(inputs), rtol=1e-5, atol=1e-6
    )


def test_every_input_must_be_there(denoiser):
    inputs = draw()
    denoiser.run(inputs)
    with pytest.raises(BackendError, match="the stage denoiser failed: it takes .*, not cos"):
        denoiser.run({name: value for name, value in inputs.items() if name != "cos"})


def test_an_output_of_another_shape_is_refused(cpu, denoiser):
    with pytest.raises(BackendError, match="the stage denoiser failed"):
        denoiser.run(draw(), into={"next_latents": cpu.upload(np.zeros((1, 1, 1), np.float32))})


def test_a_file_that_is_no_graph(name, cpu, tmp_path, stages):
    (tmp_path / "clip.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=rf"{name} cannot load .*clip\.onnx") as fault:
        cpu.load(tmp_path / "clip.onnx", "clip", stages["clip"])
    assert "\n" not in str(fault.value)
    with pytest.raises(BackendError, match=rf"{name} cannot load .*nowhere\.onnx"):
        cpu.load(tmp_path / "nowhere.onnx", "clip", stages["clip"])


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
    tensors = list(getattr(stages["denoiser"], side))
    tensors[index] = tensors[index].model_copy(update=update)
    with pytest.raises(BundleError, match=r"denoiser\.onnx.*the manifest says"):
        cpu.load(tiny / "denoiser.onnx", "denoiser", stages["denoiser"].model_copy(update={side: tensors}))


def test_weight_bytes(cpu, tiny, stages):
    files = [tiny / "denoiser.onnx", tiny / "denoiser.safetensors"]
    assert cpu.weight_bytes(files[0], "denoiser", stages["denoiser"]) == sum(
        file.stat().st_size for file in files
    )


@pytest.mark.parametrize("byte", [b"\x80", b"\xff"])
def test_a_graph_whose_names_are_no_text_is_one_line(cpu, name, tiny, stages, tmp_path, byte):
    """OpenVINO repeats what it does not find, such as an operator, whose name need not be UTF-8."""
    graph = (tiny / "t5.onnx").read_bytes()
    at = graph.index(b"Unsqueeze")
    (tmp_path / "t5.onnx").write_bytes(graph[:at] + b"Unsqu" + byte + b"eze" + graph[at + 9 :])
    with pytest.raises(BackendError, match=rf"{name} cannot load .*t5\.onnx") as fault:
        cpu.load(tmp_path / "t5.onnx", "t5", stages["t5"])
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_sequential_keeps_what_waits_for_its_turn(bundle, backend):
    """Conditions of several batches wait on the host while other stages are loaded and buffers are freed."""
    asked = {"steps": 3, "seed": 1, "size": (64, 48), "guidance": 2.0, "count": 2}
    prompts, pictures = ["a red circle", "a blue square", "a green cross"], []
    for memory in ("resident", "sequential"):
        with Pipeline.load(bundle("flux-nano"), backend, "cpu", memory=memory) as pipeline:
            pictures.append([np.asarray(image) for image in pipeline.generate(prompts, **asked)])
    np.testing.assert_array_equal(*map(np.stack, pictures))
    assert pictures[0][0].std() > 1
