"""What a config leaves out is what diffusers and transformers would fill in."""

import inspect
import json

import pytest
from checkpoints import write_random
from conftest import RANDOM
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, T5Config

from flux_trt.exporter.checkpoints.defaults import (
    AUTOENCODER_KL,
    CLIP_TEXT,
    FLOW_MATCH_EULER,
    FLUX_TRANSFORMER,
    T5_ENCODER,
)
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux1.params import axes_of, flux_params
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.families.scheduler import SHIFTING
from flux_trt.exporter.families.stage import skeleton
from flux_trt.runtime.bundle.rules import Constant
from flux_trt.runtime.errors import CheckpointError

NO_PICTURE = {"sample_size", "force_upcast"}
"""Of the VAE: read by other pipelines, and by nobody in float32."""


def signature(kind):
    found = inspect.signature(kind.__init__).parameters.values()
    plain = {p.name: p.default for p in found if p.default is not p.empty}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def test_the_transformers_are_diffusers_own():
    theirs = signature(FluxTransformer2DModel)
    axes = theirs.pop("axes_dims_rope")
    assert {name: value for name, value in FLUX_TRANSFORMER.items() if name != "axes_dims_rope"} == theirs
    assert axes_of(theirs["attention_head_dim"]) == tuple(axes)


def test_the_vaes_are_diffusers_own():
    theirs = signature(AutoencoderKL)
    assert {name: value for name, value in theirs.items() if name not in NO_PICTURE} == AUTOENCODER_KL


def test_the_schedulers_are_diffusers_own():
    assert signature(FlowMatchEulerDiscreteScheduler) == FLOW_MATCH_EULER


@pytest.mark.parametrize(("ours", "kind"), [(CLIP_TEXT, CLIPTextConfig), (T5_ENCODER, T5Config)])
def test_the_text_encoders_are_transformers_own(ours, kind):
    theirs = kind()
    assert {name: getattr(theirs, name) for name in ours} == ours


@pytest.fixture
def folder(tmp_path):
    return write_random(tmp_path / "checkpoint", **RANDOM["dev-like"])


def without(path, *names):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in names}))


def test_the_official_transformers_config_is_enough(folder):
    whole = flux_params(open_checkpoint(str(folder)).parts["transformer"])
    without(folder / "transformer" / "config.json", "axes_dims_rope", "out_channels")
    assert flux_params(open_checkpoint(str(folder)).parts["transformer"]) == whole


def test_a_vae_without_a_shift_has_none(folder):
    without(folder / "vae" / "config.json", "shift_factor")
    (decoder,) = make_stages(recognise(open_checkpoint(str(folder))), "fp32", ["vae_decoder"])
    assert decoder.config["shift_factor"] is None
    assert skeleton(decoder).config.shift_factor is None


def test_a_schedulers_missing_entries_are_its_classes_and_not_the_variants(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    assert recognise(open_checkpoint(str(folder))).numbers().schedule == Constant(shift=1.0, round=None)


FOREIGN = {
    "num_train_timesteps": 500,
    "invert_sigmas": True,
    "shift_terminal": 0.1,
    "use_karras_sigmas": True,
    "use_exponential_sigmas": True,
    "use_beta_sigmas": True,
    "time_shift_type": "linear",
    "stochastic_sampling": True,
}


def test_every_entry_of_the_scheduler_is_followed_or_refused():
    assert set(SHIFTING) | set(FOREIGN) == set(FLOW_MATCH_EULER)


@pytest.mark.parametrize(("name", "value"), FOREIGN.items())
def test_a_scheduler_that_paints_otherwise_is_refused(folder, name, value):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(CheckpointError, match=f"sets {name} to"):
        recognise(open_checkpoint(str(folder))).numbers()
