"""FLUX.3's stages against transformers and diffusers, and all forms of a checkpoint as one bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux2_forms as forms
import flux3_checkpoints as flux3
import onnx
import onnxruntime
import pytest
from flux3_forms import bfl, trained

from flux_trt.exporter.build import build
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
from flux_trt.exporter.verify.verify import relative_error, verify
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.window import Window

Get = Callable[..., Path]


@pytest.mark.parametrize("kind", flux3.KINDS)
def test_fp32_stages_agree_to_1e_4(flux3_bundle: Get, kind: str) -> None:
    rows = list(verify(flux3_bundle(kind)))
    stages = {"text", "time", "context", "references", "denoiser", "vae_encoder", "vae_decoder"}
    assert {row.stage for row in rows} == stages
    assert {row.oracle for row in rows} == {"transformers", "diffusers"}
    for row in rows:
        assert row.error <= (1 / 255 if row.output == "image" else 1e-4), row


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_queries_and_keys_are_not_joined(flux3_bundle: Get, precision: str) -> None:
    """The node takes both as they are projected, and so does the function beside."""
    found = onnx.load(flux3_bundle("base", precision) / "denoiser.onnx", load_external_data=False)
    nodes = [node for node in found.graph.node if node.op_type == "QKNormRope"]
    makers = {output: node.op_type for node in found.graph.node for output in node.output}
    assert {len(node.input) for node in nodes} == {6}
    assert "Concat" not in {makers[name] for node in nodes for name in node.input[:2]}
    assert {len(function.input) for function in found.functions} == {6}


def test_lower_precisions_stay_within_their_rounding(flux3_bundle: Get) -> None:
    for kind, precision in (("distilled", "bf16"), ("base", "fp16")):
        rows = list(verify(flux3_bundle(kind, precision)))
        assert [row for row in rows if not row.passed] == []
        assert max(row.error for row in rows) > 1e-5, "nothing was rounded: was this fp32?"


def test_prompts_are_read_as_the_pipeline_reads_them(
    flux3_bundle: Get, flux3_parts: Callable[[str], dict[str, Any]]
) -> None:
    """Template, ids, mask, places of padding and taps, for empty, short, long and too long prompts."""
    parts, root = flux3_parts("base"), flux3_bundle("base")
    from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep

    spec = manifest.read(root).tokenizers["text"]
    assert (spec.pad.multiple, spec.pad.most, spec.pad.side) == (80, flux3.LENGTH, "right")
    session = onnxruntime.InferenceSession(root / "text.onnx")
    for prompt, length in (("", 80), ("a red circle", 80), ("word " * 20, 160), ("word " * 200, 400)):
        expected = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
            parts["text_encoder"],
            flux3.Processor(parts["tokenizer"]),
            prompt,
            max_sequence_length=flux3.LENGTH,
            hidden_states_layers=flux3.TAPS,
        )
        seen = Window(root, spec).of([prompt])
        assert seen.ids.shape == (1, length)
        assert bool(seen.lost[0]) == (len(prompt) > flux3.LENGTH)
        (found,) = session.run(None, seen.inputs)
        assert relative_error(found, expected.detach().numpy()) <= 1e-4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose VAE has groups of 32, which no shape tells."""
    vae = flux3.vae((32, 32, 64, 64), 32, (32, 32, 64, 32))
    return flux3.write("distilled", tmp_path_factory.mktemp("forms") / "whole", seed=3, vae=vae)


def hashes(root: Path) -> dict[str, str]:
    """Of all graphs and weights."""
    return {name: file.sha256 for name, file in manifest.read(root).files.items() if "glue" not in name}


@pytest.fixture(scope="module")
def expected(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("expected") / "bundle"
    build(str(whole), out, link=False)
    return hashes(out)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_single_files_give_the_bundle_that_the_folder_gives(
    whole: Path, expected: dict[str, str], tmp_path: Path, prefix: str
) -> None:
    """BFL's transformer with what is of training alone, ae.safetensors, and the whole text encoder."""
    tensors = trained(bfl(whole))
    file = forms.save(forms.prefixed(tensors, prefix), tmp_path / "klein.safetensors")
    vae = forms.save(forms.bfl_vae(whole), tmp_path / "ae.safetensors")
    out = tmp_path / "bundle"
    found = build(
        str(file), out, link=False, vae=vae, text_encoders=whole / "text_encoder", tokenizers=str(whole)
    )
    assert (found.family, found.variant, found.provenance.layout) == ("FLUX.3", "Klein", "bfl")
    assert hashes(out) == expected


def test_weights_are_linked_whole(flux3_folder: Get, tmp_path: Path) -> None:
    """Nothing is fused in either layout: the transformer's file is the bundle's, but for one tensor."""
    source = flux3_folder("base")
    build(str(source), tmp_path / "bundle", stages=["denoiser", "time", "context", "references"])
    theirs = source / "transformer" / "diffusion_pytorch_model.safetensors"
    mine = [path for path in (tmp_path / "bundle").rglob("*.safetensors") if path.samefile(theirs)]
    assert mine, "the file was copied"


def test_calibration_paints_a_flux3(flux3_folder: Get, tmp_path: Path) -> None:
    """All layers that fp8 takes are seen, and the result is close."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square on a white background\n")
    for kind in flux3.KINDS:
        source, out = str(flux3_folder(kind)), tmp_path / f"{kind}.json"
        found = calibrate_checkpoint(source, out, prompts=prompts, size=(64, 48), steps=2)
        assert {"content_mode_blocks.image.1.mlp_in", "single_blocks.2.attn_out"} <= set(
            found.layers["denoiser"]
        )
        assert "txt_mode_blocks.1.q_proj" in found.layers["context"]
    chosen = {"text": "bf16", "context": "fp8"}
    fp8 = Fp8(base="fp32", calibration=out)
    stages = ["context", "denoiser"]
    build(source, tmp_path / "bundle", precision="fp8", fp8=fp8, stages=stages, stage_precisions=chosen)
    rows = list(verify(tmp_path / "bundle"))
    assert {row.precision for row in rows} == {"fp8"}
    assert [row for row in rows if not row.passed] == []
