"""Glue graphs against diffusers' arithmetic, through the backend interface."""

import numpy as np
import onnx
import pytest
import simulator_bundle
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from simulator_cuda import CudaSimulator
from tiny_bundle import files

from flux_trt.exporter.glue import write_glue
from flux_trt.runtime import manifest
from flux_trt.runtime.backend import connect

CHANNELS = 16


@pytest.fixture
def root(tiny, tmp_path):
    """The tiny bundle with the glue that every export has."""
    import json
    import shutil

    root = tmp_path / "bundle"
    shutil.copytree(tiny, root)
    glue, _ = write_glue(root, CHANNELS)
    fields = json.loads((root / manifest.NAME).read_text())
    fields["glue"] = {name: stage.model_dump() for name, stage in glue.items()}
    fields["files"] = files(root)
    (root / manifest.NAME).write_text(manifest.Manifest.model_validate(fields).dumps())
    return root


def case(seed=0, batch=3, tokens=5):
    rng = np.random.default_rng(seed)
    names = ("latents", "velocity", "negative")
    values = {name: rng.standard_normal((batch, tokens, CHANNELS)).astype(np.float32) for name in names}
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.25])
    values["dt"] = np.full((batch, tokens, 1), float(scheduler.sigmas[1] - scheduler.sigmas[0]), np.float32)
    values["scale"] = np.array([1.0, 3.5, 7.0], np.float32).reshape(batch, 1, 1)
    return values, scheduler


def expected(values, scheduler):
    """FluxPipeline.__call__ with true_cfg_scale, then its scheduler's step."""
    latents, velocity, negative, scale = (
        torch.from_numpy(values[name]) for name in ("latents", "velocity", "negative", "scale")
    )
    guided = negative + scale * (velocity - negative)
    return scheduler.step(guided, scheduler.timesteps[0], latents, return_dict=False)[0].numpy()


@pytest.mark.parametrize("runner", ["onnxruntime", "tensorrt"])
def test_cfg_is_diffusers_true_cfg_and_euler_step(root, runner):
    values, scheduler = case()
    stage = manifest.read(root).glue["cfg"]
    if runner == "tensorrt":
        simulator_bundle.add_engines(root)
        backend = simulator_bundle.backend(root, CudaSimulator())
    else:
        backend = connect("onnxruntime", "cpu")
    graph = backend.load(root / stage.graph, "cfg", stage)
    found = graph.run(values)
    assert set(found) == {"next_latents"}
    np.testing.assert_allclose(
        found["next_latents"].numpy(), expected(values, scheduler), rtol=1e-5, atol=1e-6
    )
    # A scale of 1 leaves the plain step, and a token with dt 0 stays as it is.
    values["dt"][:, 2] = 0
    still = graph.run(values)["next_latents"].numpy()
    np.testing.assert_array_equal(still[:, 2], values["latents"][:, 2])
    plain = values["latents"][0] + values["dt"][0] * values["velocity"][0]
    np.testing.assert_allclose(still[0], plain, rtol=1e-5, atol=1e-6)
    graph.close()


def test_every_export_has_it(bundle):
    root = bundle("flux-nano")
    found = manifest.read(root)
    stage = found.glue["cfg"]
    model = onnx.load(root / stage.graph)
    onnx.checker.check_model(model, full_check=True)
    assert stage.graph in found.files
    assert stage.inputs[0] == found.stages["denoiser"].inputs[0]
    assert stage.outputs[0] == found.stages["denoiser"].outputs[0]
    assert connect("onnxruntime", "cpu").load(root / stage.graph, "cfg", stage)


def test_bundles_of_old_have_none(tiny):
    assert manifest.read(tiny).glue == {}
    text = (tiny / manifest.NAME).read_text()
    import json

    fields = json.loads(text)
    del fields["glue"]
    assert manifest.Manifest.model_validate_json(json.dumps(fields)) == manifest.read(tiny)
