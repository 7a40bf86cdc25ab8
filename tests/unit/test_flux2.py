"""What FLUX.2 tells of itself, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux2_checkpoints as flux2
import flux2_forms as forms
import pytest
from checkpoints import NANO
from click.testing import CliRunner
from family_rules import FLUX2, FLUX2_NOISE, FLUX2_SCHEDULE, SHRUNK
from PIL import Image

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.cli import main
from flux_trt.exporter.families.flux2.flux2 import SCHEDULE, positions_of
from flux_trt.exporter.families.flux2.params import KLEIN_4B, flux2_params
from flux_trt.exporter.families.flux2.variants import VARIANTS, candidates
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise, recognise_as
from flux_trt.exporter.survey import survey
from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import BuildError, CheckpointError, RequestError

Get = Callable[..., Path]


@pytest.mark.parametrize(
    ("kind", "variant", "guidance", "steps"),
    [
        ("distilled", "klein", ("none", None, None), 4),
        ("base", "klein base", ("true", 4.0, ""), 50),
        ("kv", "klein KV", ("none", None, None), 4),
        ("dev", "dev", ("embedded", 4.0, None), 50),
    ],
)
def test_members_are_told_by_their_tensors_and_their_index(
    flux2_folder: Get, kind: str, variant: str, guidance: tuple[Any, ...], steps: int
) -> None:
    model = recognise(open_checkpoint(str(flux2_folder(kind))))
    numbers = model.numbers()
    assert (model.family, model.variant, model.choices) == ("FLUX.2", variant, [])
    found = numbers.guidance
    assert (found.kind, found.default, found.negative) == guidance
    assert numbers.defaults.steps == steps
    assert (numbers.defaults.width, numbers.defaults.height) == (1024, 1024)
    assert "references" in model.parts if kind == "kv" else "references" not in model.parts


def test_the_rules_are_those_that_are_compared_with_diffusers() -> None:
    assert SCHEDULE == FLUX2_SCHEDULE
    assert positions_of(KLEIN_4B) == FLUX2


def test_the_numbers_of_a_bundle(flux2_folder: Get) -> None:
    numbers = recognise(open_checkpoint(str(flux2_folder("distilled")))).numbers()
    assert numbers.schedule == SCHEDULE
    assert numbers.model.noise == FLUX2_NOISE.model_copy(update={"channels": 16})
    assert numbers.model.references is not None
    assert numbers.model.references.size == SHRUNK


def test_published_sizes_have_names_and_kv_is_a_9b() -> None:
    names = [v.name for v in candidates(KLEIN_4B)]
    assert names == ["distilled", "base"]
    with pytest.raises(CheckpointError, match="not FLUX.2's kv; --variant can be distilled, base"):
        candidates(KLEIN_4B, asked="kv")
    with pytest.raises(CheckpointError, match="not FLUX.2's dev"):
        candidates(KLEIN_4B, asked="dev")
    index = {"_class_name": "Flux2KleinPipeline"}
    assert [v.name for v in candidates(KLEIN_4B, index)] == ["base"]
    assert [v.name for v in candidates(KLEIN_4B, {**index, "is_distilled": True})] == ["distilled"]
    painter = {"_class_name": "Flux2KleinInpaintPipeline", "is_distilled": True}
    assert [v.name for v in candidates(KLEIN_4B, painter)] == ["distilled"]
    assert set(VARIANTS) == {"distilled", "base", "kv", "dev"}


def test_a_bundle_is_verified_as_what_it_is(flux2_folder: Get, tmp_path: Path) -> None:
    """Of a single file no name tells the member: the bundle's label does."""
    file = forms.save(forms.bfl(flux2_folder("kv")), tmp_path / "klein.safetensors")
    found = open_checkpoint(str(file))
    assert recognise(found).variant == "klein"
    assert recognise_as(found, "klein KV").variant == "klein KV"


def test_shapes_tell_what_a_config_says(flux2_folder: Get, tmp_path: Path) -> None:
    for kind in ("distilled", "dev"):
        file = forms.save(forms.bfl(flux2_folder(kind)), tmp_path / f"{kind}.safetensors")
        told = flux2_params(open_checkpoint(str(file)).parts["transformer"])
        assert told == flux2_params(open_checkpoint(str(flux2_folder(kind))).parts["transformer"])


def faults(source: Path, **asked: Any) -> list[str]:
    return survey(str(source), source.parent / "out", **asked).faults


@pytest.fixture
def folder(flux2_folder: Get, tmp_path: Path) -> Path:
    return shutil.copytree(flux2_folder("distilled"), tmp_path / "checkpoint")


def test_nothing_is_wrong_with_a_whole_one(folder: Path) -> None:
    assert faults(folder) == []


def test_an_encoder_of_another_size(folder: Path) -> None:
    flux2.redraw(flux2.text_encoder("klein", hidden=40)).save_pretrained(folder / "text_encoder")
    assert faults(folder) == [
        "the text encoder gives 3 x 40 = 120 channels and the transformer takes 96; "
        "give this model's own with --text-encoders"
    ]


def test_an_encoder_that_is_cut_short(folder: Path) -> None:
    config = folder / "text_encoder" / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "num_hidden_layers": 3, "layer_types": said["layer_types"][:3]}))
    (fault,) = {line for line in faults(folder) if "layers" in line}
    assert "the text encoder has 3 layers and is read behind layer" in fault


def test_a_published_encoder_without_its_last_tap(folder: Path) -> None:
    """A width of 2560 is Qwen3-4B's, whose last tap is behind layer 27 whatever the file says."""
    config = folder / "text_encoder" / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "hidden_size": 2560, "num_hidden_layers": 20})
    )
    assert any(
        "has 20 layers and is read behind layer 27: it is cut short" in line for line in faults(folder)
    )


def test_an_encoder_without_some_of_its_layers(folder: Path) -> None:
    tensors = forms.encoder(folder)
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.5." not in name}
    forms.save(kept, folder / "text_encoder" / "model.safetensors")
    (fault,) = faults(folder)
    assert fault.startswith("text: 11 tensors are missing: model.layers.5.") or "layers.5." in fault


def test_flux1s_vae(folder: Path) -> None:
    (fault,) = set(faults(folder, vae=NANO / "vae"))
    assert fault == (
        "the VAE has no statistics of its latents (bn.running_mean): it is another family's; "
        "give this model's own with --vae"
    )


def test_a_tokenizer_of_another_family(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    flux2.tokenizer("dev", "left").save_pretrained(folder / "tokenizer")
    (fault,) = faults(folder)
    assert "does not know" in fault


def test_a_stage_or_a_precision_that_it_does_not_have(folder: Path) -> None:
    model = recognise(open_checkpoint(str(folder)))
    with pytest.raises(BuildError, match="FLUX.2 klein has no stage clip; its stages are text, conditioner"):
        make_stages(model, "fp32", ["clip"])
    with pytest.raises(BuildError, match="FLUX.2 klein has no stage t5"):
        make_stages(model, "fp32", None, {"t5": "bf16"})
    with pytest.raises(BuildError, match="the text encoder overflows in fp16"):
        make_stages(model, "fp32", None, {"text": "fp16"})
    plan = {stage.name: stage.precision for stage in make_stages(model, "fp16")}
    assert plan == {
        "text": "fp32",
        "conditioner": "fp16",
        "denoiser": "fp16",
        "vae_encoder": "fp32",
        "vae_decoder": "fp32",
    }
    plan = {stage.name: (stage.precision, stage.base) for stage in make_stages(model, "fp8")}
    assert plan["text"] == plan["denoiser"] == ("fp8", "bf16")
    assert plan["conditioner"] == plan["vae_decoder"] == ("bf16", None)


def test_an_old_scheduler_is_followed_and_another_refused(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "use_dynamic_shifting": False}))
    schedule = recognise(open_checkpoint(str(folder))).numbers().schedule
    assert (schedule.kind, schedule.shift) == ("constant", 3.0)
    path.write_text(json.dumps({**said, "use_karras_sigmas": True}))
    assert any("use_karras_sigmas" in line for line in faults(folder))


def test_the_command_says_what_it_would_do(folder: Path) -> None:
    out = str(folder.parent / "out")
    found = CliRunner().invoke(main, ["build", str(folder), "-o", out, "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "FLUX.2 klein" in found.output
    assert "text 64 tokens" in found.output


def test_requests_that_a_klein_refuses(flux2_bundle: Get) -> None:
    with Pipeline.load(flux2_bundle("distilled"), "onnxruntime") as pipeline:
        with pytest.raises(RequestError, match="has no guidance; leave guidance out"):
            pipeline.generate("a", guidance=4.0)
        with pytest.raises(RequestError, match="has 63x200 pixels; sides are at least 64"):
            pipeline.generate("a", reference=Image.new("RGB", (63, 200)))
        with pytest.raises(RequestError, match="at most 8 times the short one"):
            pipeline.generate("a", reference=Image.new("RGB", (64, 640)))
        with pytest.raises(RequestError, match="has 40x40 pixels; sides are at least 64"):
            pipeline.generate("a", reference=Image.new("RGB", (40, 40)), auto_resize=False)


def test_a_prompt_beyond_the_window_is_warned_of(flux2_bundle: Get, caplog: pytest.LogCaptureFixture) -> None:
    with Pipeline.load(flux2_bundle("distilled"), "onnxruntime") as pipeline:
        pipeline.generate("a circle " * 7 + "at the end", size=(32, 32), steps=1)
    (said,) = [each.getMessage() for each in caplog.records if each.name.startswith("flux_trt")]
    assert said.startswith("text reads only 64 tokens; not read: ")
    assert "at the end" in said
