"""What FLUX.3 tells of itself, and what is refused before any work."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux2_forms as forms
import flux3_checkpoints as flux3
import pytest
import torch
from checkpoints import NANO
from click.testing import CliRunner
from diffusers import Flux3Transformer2DModel
from family_rules import FLUX2_NOISE, FLUX3, FLUX3_SCHEDULE
from flux3_forms import bfl, trained
from safetensors.torch import load_file, save_file

from flux_trt.exporter.checkpoints.defaults import FLUX3_TRANSFORMER
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.cli import main
from flux_trt.exporter.families.flux3.flux3 import positions_of
from flux_trt.exporter.families.flux3.params import KLEIN, flux3_params
from flux_trt.exporter.families.flux3.variants import PARTS, QWEN3_VL, VARIANTS, tasks_of
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.families.stage import skeleton
from flux_trt.exporter.survey import survey
from flux_trt.runtime.bundle.rules import Canvas
from flux_trt.runtime.errors import BuildError, CheckpointError

Get = Callable[..., Path]


@pytest.mark.parametrize(
    ("kind", "variant", "guidance", "steps"),
    [("base", "Klein base", ("true", 3.5, ""), 50), ("distilled", "Klein", ("none", None, None), 16)],
)
def test_members_are_told_by_their_tensors(
    flux3_folder: Get, kind: str, variant: str, guidance: tuple[Any, ...], steps: int
) -> None:
    model = recognise(open_checkpoint(str(flux3_folder(kind))))
    numbers = model.numbers()
    assert (model.family, model.variant, model.choices) == ("FLUX.3", variant, [])
    found = numbers.guidance
    assert (found.kind, found.default, found.negative) == guidance
    assert (numbers.defaults.width, numbers.defaults.height, numbers.defaults.steps) == (1024, 1024, steps)
    assert numbers.schedule == FLUX3_SCHEDULE
    assert numbers.model.noise == FLUX2_NOISE.model_copy(update={"channels": 16})
    references = numbers.model.references
    assert references is not None
    assert (references.enters, references.most, references.apart) == ("input", 10, True)
    assert references.size == Canvas(area=4194304, side=4096, least=64, several=1048576)


def test_the_rules_are_those_that_are_compared_with_diffusers() -> None:
    assert positions_of(KLEIN) == FLUX3
    theirs = inspect.signature(Flux3Transformer2DModel.__init__).parameters.values()
    assert {p.name: p.default for p in theirs if p.default is not p.empty} == FLUX3_TRANSFORMER
    assert (QWEN3_VL.taps, QWEN3_VL.multiple, QWEN3_VL.length) == ((4, 8, 12, 16, 20, 24, 28, 32), 80, 8192)


@pytest.mark.parametrize("flow_map", [False, True])
def test_the_published_size(flow_map: bool) -> None:
    """Parameters and tensors as the public cards count them."""
    with torch.device("meta"):
        theirs = Flux3Transformer2DModel(flow_map=flow_map)
    counted = sum(parameter.numel() for parameter in theirs.parameters())
    assert (counted, len(list(theirs.parameters()))) == ((5548681984, 359) if flow_map else (5538458368, 357))


def test_times_and_noise_are_rounded_where_the_weights_are(flux3_folder: Get, tmp_path: Path) -> None:
    """As the reference does, which holds both in the transformer's own type."""
    folder = shutil.copytree(flux3_folder("base"), tmp_path / "checkpoint")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    numbers = recognise(open_checkpoint(str(folder))).numbers()
    assert (numbers.schedule.round, numbers.model.noise.round) == ("bf16", "bf16")


def test_what_each_member_can_do() -> None:
    base, distilled = VARIANTS["base"], VARIANTS["distilled"]
    assert tasks_of(base, PARTS) == ["generate", "image", "inpaint", "edit", "reference"]
    assert tasks_of(distilled, PARTS) == ["generate", "reference"]
    assert tasks_of(base, set(PARTS) - {"vae_encoder"}) == ["generate"]
    assert tasks_of(base, {"denoiser"}) == []


def test_shapes_tell_what_a_config_says(flux3_folder: Get, tmp_path: Path) -> None:
    for kind in flux3.KINDS:
        tensors = trained(bfl(flux3_folder(kind)))
        file = forms.save(forms.prefixed(tensors), tmp_path / f"{kind}.safetensors")
        told = flux3_params(open_checkpoint(str(file)).parts["transformer"])
        assert told == flux3_params(open_checkpoint(str(flux3_folder(kind))).parts["transformer"])


def test_another_variant_is_refused(flux3_folder: Get) -> None:
    for kind, other in (("base", "distilled"), ("distilled", "base"), ("base", "dev")):
        with pytest.raises(CheckpointError, match=f"not FLUX.3's {other}; --variant can be {kind}"):
            recognise(open_checkpoint(str(flux3_folder(kind))), other)


def faults(source: Path, **asked: Any) -> list[str]:
    return survey(str(source), source.parent / "out", **asked).faults


@pytest.fixture
def folder(flux3_folder: Get, tmp_path: Path) -> Path:
    return shutil.copytree(flux3_folder("distilled"), tmp_path / "checkpoint")


def test_nothing_is_wrong_with_a_whole_one(folder: Path) -> None:
    assert faults(folder) == []


def test_a_config_that_its_tensors_belie(folder: Path) -> None:
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "flow_map": False}))
    with pytest.raises(CheckpointError, match="says that it is not a flow map and its tensors have a"):
        recognise(open_checkpoint(str(folder)))


def test_an_encoder_of_another_size(folder: Path) -> None:
    flux3.redraw(flux3.text_encoder(hidden=40)).save_pretrained(folder / "text_encoder")
    assert faults(folder) == [
        "the text encoder gives 8 x 40 = 320 channels and the transformer takes 256; "
        "give this model's own with --text-encoders"
    ]


def test_flux1s_vae(folder: Path) -> None:
    (fault,) = set(faults(folder, vae=NANO / "vae"))
    assert "the VAE has no statistics of its latents" in fault


def test_a_block_that_is_missing_and_a_tensor_that_is_strange(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("mode_blocks.image.1.")}
    save_file(kept, path)
    assert any("transformer: 8 tensors are missing: mode_blocks.image.1." in line for line in faults(folder))
    save_file({**tensors, "strange.weight": torch.zeros(2)}, path)
    assert faults(folder) == [
        "transformer: 1 tensors are not FLUX.3's: strange.weight; check that this is a whole FLUX.3"
    ]


def test_a_scheduler_that_shifts_by_size(folder: Path) -> None:
    (folder / "scheduler").mkdir()
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6.93, "use_dynamic_shifting": True}
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(config))
    assert any("shifts by the picture's size, which FLUX.3 does not" in line for line in faults(folder))
    path.write_text(json.dumps({**config, "use_dynamic_shifting": False}))
    assert recognise(open_checkpoint(str(folder))).numbers().schedule == FLUX3_SCHEDULE


def test_precisions_of_its_stages(folder: Path) -> None:
    model = recognise(open_checkpoint(str(folder)))
    with pytest.raises(BuildError, match="has no stage conditioner; its stages are text, time, context"):
        make_stages(model, "fp32", ["conditioner"])
    with pytest.raises(BuildError, match="the text encoder overflows in fp16"):
        make_stages(model, "fp32", None, {"text": "fp16"})
    # Every layer of this small encoder is tapped, so fp8 has none of it.
    made = make_stages(model, "fp8", None, {"text": "bf16"})
    plan = {stage.name: (stage.precision, stage.base) for stage in made}
    assert plan.pop("denoiser") == ("fp8", "bf16")
    assert set(plan.values()) == {("bf16", None)}
    with pytest.raises(BuildError, match="text has no fp8; nothing in it is quantised: use text=bf16"):
        make_stages(model, "fp8")


def test_blocks_can_be_loaded_one_at_a_time(folder: Path) -> None:
    for stage in make_stages(recognise(open_checkpoint(str(folder))), "fp32"):
        module = skeleton(stage)
        for path in stage.blocks:
            assert list(module.get_submodule(path).named_children())


def test_the_command_says_what_it_would_do(folder: Path) -> None:
    out = str(folder.parent / "out")
    found = CliRunner().invoke(main, ["build", str(folder), "-o", out, "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "FLUX.3 Klein" in found.output
