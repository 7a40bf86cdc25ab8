"""FLUX.2's stages against transformers and diffusers, and all forms of a checkpoint as one bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux2_checkpoints as flux2
import flux2_forms as forms
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.quantize import input_scales
from flux_trt.exporter.verify.verify import relative_error, verify
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.errors import BuildError

Get = Callable[..., Path]
KINDS = ("distilled", "base", "kv", "dev")


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_stages_agree_to_1e_4(flux2_bundle: Get, kind: str) -> None:
    rows = list(verify(flux2_bundle(kind)))
    known = {"text", "conditioner", "denoiser", "vae_encoder", "vae_decoder"}
    assert {row.stage for row in rows} == known | ({"references"} if kind == "kv" else set())
    assert {row.oracle for row in rows} == {"transformers", "diffusers"}
    for row in rows:
        assert row.error <= (1 / 255 if row.output == "image" else 1e-4), row


@pytest.mark.parametrize("kind", ["distilled", "dev"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_read_as_the_pipelines_read_them(
    flux2_bundle: Get, flux2_parts: Callable[[str], dict[str, Any]], kind: str, side: str
) -> None:
    """Template, ids, mask, padding side and taps together, for short, empty and too long prompts."""
    parts = flux2_parts(kind)
    family = "dev" if kind == "dev" else "klein"
    pipe = flux2.pipeline(kind, {**parts, "tokenizer": flux2.tokenizer(family, side)})
    prompts = ["a red [IMG]circle" if kind == "dev" else "a red circle", "", "long " * 80]
    expected, _ = pipe.encode_prompt(
        prompts, max_sequence_length=flux2.LENGTH[family], text_encoder_out_layers=flux2.TAPS
    )
    root = flux2_bundle(kind)
    spec = manifest.read(root).tokenizers["text"]
    assert spec.pad.side == ("left" if kind == "dev" else "right")
    seen = Window(root, spec.model_copy(update={"pad": spec.pad.model_copy(update={"side": side})})).of(
        prompts
    )
    (found,) = onnxruntime.InferenceSession(root / "text.onnx").run(None, seen.inputs)
    assert relative_error(found, expected.detach().numpy()) <= 1e-4
    assert [bool(lost) for lost in seen.lost] == [False, False, True]


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("kv", "bf16"), ("kv", "fp16"), ("dev", "bf16"), ("distilled", "fp16")],
)
def test_lower_precisions_stay_within_their_rounding(flux2_bundle: Get, kind: str, precision: str) -> None:
    rows = list(verify(flux2_bundle(kind, precision)))
    assert [row for row in rows if not row.passed] == []
    assert max(row.error for row in rows) > 1e-5, "nothing was rounded: was this fp32?"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", "float32"), ("bf16", "float16"), ("fp16", "float16")]
)
def test_keys_and_values_pass_in_two_bytes_where_the_stage_has_them(
    flux2_bundle: Get, precision: str, dtype: str
) -> None:
    stages = manifest.read(flux2_bundle("kv", precision)).stages
    taken = [each for each in stages["denoiser"].inputs if each.name in ("keys", "values")]
    assert taken == stages["references"].outputs
    assert [each.dtype for each in taken] == [dtype] * 2


def test_keys_of_two_types_are_refused_before_any_work(flux2_folder: Get, tmp_path: Path) -> None:
    said = r"references \(fp32\) and denoiser \(bf16\) hand each other keys.*--stage-precision"
    chosen = {"references": "fp32"}
    with pytest.raises(BuildError, match=said):
        build(str(flux2_folder("kv")), tmp_path / "kv", precision="bf16", stage_precisions=chosen)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A klein whose VAE has groups of 32 and whose encoder is as published where no shape tells it."""
    vae = flux2.vae((32, 32, 64, 64), 32, (32, 32, 64, 32))
    return flux2.write("distilled", tmp_path_factory.mktemp("forms") / "whole", seed=3, vae=vae)


def hashes(root: Path) -> dict[str, str]:
    """Of all graphs and weights."""
    return {name: file.sha256 for name, file in manifest.read(root).files.items() if "glue" not in name}


@pytest.fixture(scope="module")
def expected(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("expected") / "bundle"
    build(str(whole), out, link=False)
    return hashes(out)


def test_single_files_give_the_bundle_that_the_folder_gives(
    whole: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """BFL's transformer and ae.safetensors, and a loose text encoder."""
    file = forms.save(forms.bfl(whole), tmp_path / "flux-2-klein.safetensors")
    vae = forms.save(forms.bfl_vae(whole), tmp_path / "ae.safetensors")
    text = forms.save(forms.encoder(whole), tmp_path / "qwen_3.safetensors")
    out = tmp_path / "bundle"
    told: list[str] = []
    found = build(
        str(file), out, link=False, vae=vae, text_encoders=text, tokenizers=str(whole), tell=told.append
    )
    assert (found.variant, found.provenance.layout) == ("klein", "bfl")
    assert "base and kv cannot be told from distilled by their files; --variant chooses" in told
    assert hashes(out) == expected


def test_an_all_in_one_file_gives_it_too(whole: Path, expected: dict[str, str], tmp_path: Path) -> None:
    tensors = {
        **forms.prefixed(forms.spelled_by_comfy(forms.bfl(whole))),
        **forms.prefixed(forms.bfl_vae(whole), "vae."),
        **forms.encoder(whole, "text_encoders.qwen3_4b.transformer."),
    }
    out = tmp_path / "bundle"
    found = build(
        str(forms.save(tensors, tmp_path / "all.safetensors")), out, link=False, tokenizers=str(whole)
    )
    assert found.provenance.layout == "all-in-one"
    assert hashes(out) == expected


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("spelling", ["old", "new"])
def test_both_fp8_spellings_are_decoded(whole: Path, tmp_path: Path, prefix: str, spelling: str) -> None:
    codes, numbers = forms.fp8(forms.bfl(whole))
    written = forms.old_spelling(codes) if spelling == "old" else codes
    metadata = None if spelling == "old" else forms.official_metadata(codes)
    sources = {
        "fp8": forms.save(forms.prefixed(written, prefix), tmp_path / "fp8.safetensors", metadata),
        "plain": forms.save(numbers, tmp_path / "plain.safetensors"),
    }
    for name, file in sources.items():
        build(str(file), tmp_path / name, link=False, stages=["conditioner", "denoiser"])
    assert hashes(tmp_path / "fp8") == hashes(tmp_path / "plain")


def test_an_official_fp8_file_becomes_an_fp8_bundle_without_a_calibration(
    whole: Path, tmp_path: Path
) -> None:
    codes, _ = forms.fp8(forms.bfl(whole))
    file = forms.save(codes, tmp_path / "klein-fp8.safetensors", forms.official_metadata(codes))
    out, told = tmp_path / "bundle", list[str]()
    build(
        str(file),
        out,
        precision="fp8",
        fp8=Fp8(base="fp32"),
        stages=["conditioner", "denoiser"],
        tell=told.append,
    )
    assert any("denoiser: the checkpoint itself tells the ranges of 22 layers" in line for line in told)
    assert not (tmp_path / "bundle.calibration.json").exists()
    scales = input_scales(ir.load(out / "denoiser.onnx"))
    assert len(scales) == 22
    for weight, scale in scales.items():
        assert scale == pytest.approx(float(codes[f"{weight.removesuffix('weight')}input_scale"]), rel=1e-5)
    written = load_file(out / "denoiser.safetensors")
    for weight in scales:
        assert torch.equal(written[weight].view(torch.uint8), codes[weight].view(torch.uint8)), weight
        assert bool((written[f"{weight}_scale"] == codes[f"{weight}_scale"]).all()), weight


def test_a_vae_with_a_small_decoder(flux2_parts: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    parts = {**flux2_parts("distilled"), "vae": flux2.redraw(flux2.vae(decoder=None))}
    flux2.pipeline("distilled", parts).save_pretrained(tmp_path / "other")
    build(str(tmp_path / "other"), tmp_path / "bundle", stages=["vae_encoder", "vae_decoder"])
    for row in verify(tmp_path / "bundle"):
        assert row.error <= (1 / 255 if row.output == "image" else 1e-4), row


def test_layers_behind_the_last_tap_are_not_read(flux2_folder: Get, tmp_path: Path) -> None:
    """In a shard of their own their file is no source of the bundle, and may be empty."""
    folder = shutil.copytree(flux2_folder("distilled"), tmp_path / "sharded")
    place = folder / "text_encoder"
    state = load_file(place / "model.safetensors")
    behind = {name for name in state if any(f".layers.{i}." in name for i in (6, 7))}
    shards = {"model-1.safetensors": set(state) - behind, "model-2.safetensors": behind}
    for name, held in shards.items():
        forms.save({key: state[key] for key in held}, place / name)
    where = {key: name for name, held in shards.items() for key in held}
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (place / "model.safetensors").unlink()
    found = build(str(folder), tmp_path / "bundle", stages=["text"])
    assert [source.name for source in found.provenance.sources] == ["text_encoder/model-1.safetensors"]
    names = {value.name for value in ir.load(tmp_path / "bundle" / "text.onnx").graph.initializers.values()}
    assert not any("layers.6" in name or "layers.7" in name for name in names)


def test_batch_statistics_are_weights_and_not_constants(flux2_bundle: Get) -> None:
    graph = ir.load(flux2_bundle("distilled") / "vae_decoder.onnx").graph
    for name in ("bn.running_mean", "bn.running_var"):
        assert isinstance(graph.initializers[name].const_value, ir.ExternalTensor)


def test_calibration_paints_a_flux2(flux2_folder: Get, tmp_path: Path) -> None:
    """All layers that fp8 takes are seen, of the tower all but the tapped ones, and the result is close."""
    from flux_trt.exporter.quantise.ranges import calibrate_checkpoint

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square on a white background\n")
    for kind in ("distilled", "kv"):
        found = calibrate_checkpoint(
            str(flux2_folder(kind)), tmp_path / f"{kind}.json", prompts=prompts, size=(64, 48), steps=2
        )
        assert {"double_blocks.1.txt_mlp.2", "single_blocks.2.linear2"} <= set(found.layers["denoiser"])
        layers = {name.split(".")[1] for name in found.layers["text"]}
        assert layers == {"0", "2", "4"}
    source = str(flux2_folder("distilled"))
    fp8 = Fp8(base="fp32", calibration=tmp_path / "distilled.json")
    build(source, tmp_path / "bundle", precision="fp8", fp8=fp8, stages=["text", "conditioner", "denoiser"])
    rows = list(verify(tmp_path / "bundle"))
    assert {row.stage: row.precision for row in rows}["text"] == "fp8"
    assert [row for row in rows if not row.passed] == []
    model = recognise(open_checkpoint(source))
    assert model.stage("conditioner").fp8_layers == ()
    assert torch.is_tensor(model.case("text").inputs["ids"])
    assert np.isfinite([row.error for row in rows]).all()
