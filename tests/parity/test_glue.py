"""Glue graphs against diffusers' arithmetic, through the backend interface."""

import json
import shutil

import numpy as np
import onnx
import pytest
import simulator_bundle
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from simulator_cuda import CudaSimulator
from tiny_bundle import add_glue

from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import BundleError

CHANNELS = 16
BATCH, TOKENS = 3, 5


@pytest.fixture
def root(tiny, tmp_path):
    """The tiny bundle with the glue that every export has."""
    root = tmp_path / "bundle"
    shutil.copytree(tiny, root)
    return add_glue(root)


@pytest.fixture(params=["onnxruntime", "tensorrt"])
def run(root, request):
    """Runs a glue graph by name."""
    if request.param == "tensorrt":
        simulator_bundle.add_engines(root)
        backend = simulator_bundle.backend(root, CudaSimulator())
    else:
        backend = connect("onnxruntime", "cpu")

    def run(name, values):
        stage = manifest.read(root).glue[name]
        graph = backend.load(root / stage.graph, name, stage)
        found = {output: buffer.numpy() for output, buffer in graph.run(values).items()}
        graph.close()
        return found

    return run


def case(*names, pairs=(), seed=0):
    rng = np.random.default_rng(seed)
    dims = (BATCH, TOKENS, CHANNELS)
    return {
        name: rng.standard_normal((2, *dims) if name in pairs else dims).astype(np.float32) for name in names
    }


def scheduler():
    found = FlowMatchEulerDiscreteScheduler()
    found.set_timesteps(sigmas=[1.0, 0.6, 0.25])
    return found


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_cfg_is_diffusers_true_cfg_and_euler_step(run, scale):
    steps = scheduler()
    values = case("latents", "velocity", pairs=("latents", "velocity"))
    values["latents"][1] = values["latents"][0]
    dt = float(steps.sigmas[1] - steps.sigmas[0])
    values["dt"] = np.full((2, BATCH, TOKENS, 1), dt, np.float32)
    values["scale"] = np.array([scale], np.float32)
    velocity, negative = (torch.from_numpy(half) for half in values["velocity"])
    guided = negative + scale * (velocity - negative)
    latents = torch.from_numpy(values["latents"][0])
    expected = steps.step(guided, steps.timesteps[0], latents, return_dict=False)[0].numpy()
    found = run("cfg", values)["next_latents"]
    close(found[0], expected)
    np.testing.assert_array_equal(found[0], found[1])
    values["dt"][:, :, 2] = 0  # a token with dt 0 stays as it is
    np.testing.assert_array_equal(run("cfg", values)["next_latents"][:, :, 2], values["latents"][:, :, 2])


def test_mix_noises_the_source_and_moves_the_edit_with_it(run):
    steps = scheduler()
    values = case("latents", "source", "noise")
    values["sigma"] = steps.sigmas[1:2].numpy()
    clean, noise = (torch.from_numpy(values[name]) for name in ("source", "noise"))
    noised = steps.scale_noise(clean, steps.timesteps[1:2], noise).numpy()
    found = run("mix", values)["pair"]
    close(found[0], noised)
    close(found[1], values["latents"] + noised - values["source"])


def test_edit_follows_the_difference_of_two_velocities(run):
    values = case("latents", "velocity", pairs=("velocity",))
    values["dt"] = np.array([-0.25], np.float32)
    source, target = values["velocity"]
    close(run("edit", values)["next_latents"], values["latents"] - 0.25 * (target - source))


@pytest.mark.parametrize("level", [1, 3])  # the last is 0: the picture's own latents
def test_paste_puts_back_what_is_not_painted(run, level):
    steps = scheduler()
    values = case("latents", "source", "noise", "mask")
    values["mask"] = (values["mask"] > 0).astype(np.float32)
    values["sigma"] = steps.sigmas[level : level + 1].numpy()
    clean, noise = (torch.from_numpy(values[name]) for name in ("source", "noise"))
    kept = clean if level == 3 else steps.scale_noise(clean, steps.timesteps[level : level + 1], noise)
    found = run("paste", values)["next_latents"]
    close(found, np.where(values["mask"] > 0, values["latents"], kept.numpy()))


def test_ab2_adds_what_the_change_of_velocity_says(run):
    values = case("latents", "velocity", "previous")
    values["bend"] = case("bend")["bend"][..., :1]
    values["bend"][:, 2] = 0
    found = run("ab2", values)["next_latents"]
    close(found, values["latents"] + values["bend"] * (values["velocity"] - values["previous"]))
    np.testing.assert_array_equal(found[:, 2], values["latents"][:, 2])


def test_every_export_has_them(bundle):
    root = bundle("flux-nano")
    found = manifest.read(root)
    assert set(found.glue) == set(manifest.GLUE)
    for name, stage in found.glue.items():
        model = onnx.load(root / stage.graph)
        onnx.checker.check_model(model, full_check=True)
        assert stage.graph in found.files
        assert connect("onnxruntime", "cpu").load(root / stage.graph, name, stage)


def test_bundles_of_old_have_none(tiny):
    assert manifest.read(tiny).glue == {}
    fields = json.loads((tiny / manifest.NAME).read_text())
    del fields["glue"]
    assert manifest.Manifest.model_validate_json(json.dumps(fields)) == manifest.read(tiny)
    with pytest.raises(BundleError, match="no glue graph cfg; build the bundle again"):
        Bundle.open(tiny).glue("cfg")
