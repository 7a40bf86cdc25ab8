"""Every stage of every kind of checkpoint against transformers and diffusers with the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from checkpoints import write_bfl, write_bfl_vae
from transformers import T5EncoderModel

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.checkpoints.tensorfile import read_header
from flux_trt.exporter.families.flux1.variants import PARTS as STAGES
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.verify.verify import relative_error, verify

Get = Callable[..., Path]


def test_the_oracle_reads_the_files_by_itself_where_it_can(checkpoint: Get, tmp_path: Path) -> None:
    """A part that only our reader can open is said to be read by it; its numbers are the same."""
    source = checkpoint("dev-like")
    file = write_bfl(source, tmp_path / "flux.safetensors")
    whole, single = (
        recognise(open_checkpoint(str(path), text_encoders=source, vae=source)) for path in (source, file)
    )
    libraries = {"clip": "transformers", "denoiser": "diffusers", "vae_decoder": "diffusers"}
    assert {stage: whole.case(stage).oracle for stage in libraries} == libraries
    found, expected = single.case("denoiser"), whole.case("denoiser")
    assert found.oracle == "diffusers, weights read by flux_trt"
    assert torch.equal(found.expected["velocity"], expected.expected["velocity"])


@pytest.mark.parametrize("name", ["flux-nano", "dev-like", "schnell-like"])
def test_fp32_stages_agree_to_1e_4(checkpoint: Get, bundle: Get, name: str) -> None:
    rows = list(verify(bundle(name), checkpoint=str(checkpoint(name))))
    assert {row.stage for row in rows} == set(STAGES)
    assert {row.ran_on for row in rows} == {"onnxruntime cpu"}
    for row in rows:
        limit = 1 / 255 if row.output == "image" else 1e-4
        assert row.error <= limit, row


@pytest.mark.parametrize(("name", "channels"), [("fill-like", 320), ("canny-like", 64)])
def test_variants_with_a_condition_input(checkpoint: Get, tmp_path: Path, name: str, channels: int) -> None:
    out = tmp_path / "bundle"
    found = build(str(checkpoint(name)), out, stages=["conditioner", "denoiser"])
    assert (found.variant, found.tasks) == (name.removesuffix("-like"), [])
    assert found.stages["denoiser"].inputs[-1].dims == ["batch", "tokens", channels]
    rows = list(verify(out))
    assert len(rows) == 4
    assert max(row.error for row in rows) <= 1e-4


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precisions_stay_within_their_rounding(checkpoint: Get, bundle: Get, precision: str) -> None:
    rows = list(verify(bundle("flux-nano", precision), checkpoint=str(checkpoint("flux-nano"))))
    assert [row for row in rows if not row.passed] == []
    assert {row.precision for row in rows} == ({"fp16", "fp32"} if precision == "fp16" else {"bf16"})
    assert max(row.error for row in rows) > 1e-6, "nothing was rounded: was this fp32?"


def test_verify_sees_a_changed_weight(checkpoint: Get, bundle: Get, tmp_path: Path) -> None:
    """The comparison has teeth: one weight matrix scaled by 1.01 is out of tolerance."""
    found = open_checkpoint(str(checkpoint("flux-nano")))
    expected = recognise(found).case("denoiser")
    for file in bundle("flux-nano").glob("denoiser.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    where = read_header(tmp_path / "denoiser.safetensors")["single_blocks.0.linear2.weight"]
    with where.file.open("r+b") as file:
        file.seek(where.offset)
        file.write((where.read() * 1.01).numpy().tobytes())
    inputs = {name: value.numpy() for name, value in expected.inputs.items()}

    def velocity() -> np.ndarray:
        return onnxruntime.InferenceSession(tmp_path / "denoiser.onnx").run(["velocity"], inputs)[0]

    assert relative_error(velocity(), expected.expected["velocity"].detach().numpy()) > 1e-4


@pytest.mark.parametrize("length", [1, 77, 300])
def test_t5_at_other_lengths(checkpoint: Get, bundle: Get, length: int) -> None:
    model = T5EncoderModel.from_pretrained(checkpoint("flux-nano") / "text_encoder_2", dtype=torch.float32)
    ids = np.random.default_rng(length).integers(0, 138, (1, length))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).last_hidden_state.numpy()
    (found,) = onnxruntime.InferenceSession(bundle("flux-nano") / "t5.onnx").run(None, {"ids": ids})
    assert relative_error(found, expected) <= 1e-4


def test_the_vae_decodes_batches_beyond_63(bundle: Get) -> None:
    """diffusers' upsampler branches there, so the trace did not look beyond; the graph does not mind."""
    latents = np.random.default_rng(0).standard_normal((65, 1, 2, 64), dtype=np.float32)
    session = onnxruntime.InferenceSession(bundle("flux-nano") / "vae_decoder.onnx")
    (all_at_once,) = session.run(None, {"latents": latents})
    (last,) = session.run(None, {"latents": latents[64:]})
    assert all_at_once.shape == (65, 16, 32, 3)
    assert np.abs(all_at_once[64:].astype(int) - last).max() <= 1


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_bfl_and_diffusers_names_give_the_same_outputs(
    checkpoint: Get, bundle: Get, tmp_path: Path, prefix: str
) -> None:
    source = checkpoint("dev-like")
    file = write_bfl(source, tmp_path / "flux.safetensors", prefix)
    out = tmp_path / "bundle"
    build(str(file), out, stages=["conditioner", "denoiser"])
    found = open_checkpoint(str(source))
    for stage in ("conditioner", "denoiser"):
        inputs = {name: value.numpy() for name, value in recognise(found).case(stage).inputs.items()}
        ours, theirs = (
            onnxruntime.InferenceSession(root / f"{stage}.onnx").run(None, inputs)
            for root in (out, bundle("dev-like"))
        )
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_bfl_file_with_its_vae_against_diffusers_own_converters(checkpoint: Get, tmp_path: Path) -> None:
    """The oracle's weights go through diffusers' conversion scripts, ours through our recipes."""
    file = tmp_path / "flux1-schnell.safetensors"  # the name says nothing
    vae = write_bfl_vae(tmp_path / "ae.safetensors")
    write_bfl(checkpoint("dev-like"), file)
    out = tmp_path / "bundle"
    found = build(str(file), out, vae=vae, stages=["conditioner", "denoiser", "vae_encoder", "vae_decoder"])
    assert (found.variant, found.provenance.layout, found.model.patch) == ("dev", "bfl", 16)
    rows = list(verify(out))
    assert {row.stage for row in rows} == {"conditioner", "denoiser", "vae_encoder", "vae_decoder"}
    for row in rows:
        assert row.error <= (1 / 255 if row.output == "image" else 1e-4), row


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_graphs_pass_the_checker(bundle: Get, precision: str, tmp_path: Path) -> None:
    # The checker refuses hard-linked weights; in a copy of the bundle they are files of their own.
    root = shutil.copytree(bundle("flux-nano", precision), tmp_path / "copy")
    for stage in STAGES:
        path = root / f"{stage}.onnx"
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [23]
        assert path.stat().st_size < 2_000_000
        embedded = [t.name for t in model.graph.initializer if len(t.raw_data) > 100_000]
        assert embedded == []
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
