"""Nothing of a checkpoint is taken at face value: it is used, ignored by name, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import NANO
from quantised_tensors import E4M3, Tensors, quantised
from safetensors.torch import load_file, save_file

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.diffusers import PARTS
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.checkpoints.tokenizer import Padding, load_tokenizer
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.runtime.errors import CheckpointError

Get = Callable[[str], Path]


@pytest.fixture
def folder(checkpoint: Get, tmp_path: Path) -> Path:
    """A checkpoint that the test may break."""
    return shutil.copytree(checkpoint("dev-like"), tmp_path / "checkpoint")


def part_file(folder: Path, sub: str) -> Path:
    return next((folder / sub).glob("*.safetensors"))


def rewrite(path: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def scaled_fp8(tensors: Tensors, scale: str, container: torch.dtype = E4M3) -> None:
    """As ComfyUI stores scaled fp8 (its QUANTIZATION.md): codes, and a scale beside each."""
    tensors["scaled_fp8"] = torch.zeros(2, dtype=E4M3)
    for name in [name for name, tensor in tensors.items() if tensor.ndim == 2 and name.endswith(".weight")]:
        codes, tensors[name.removesuffix("weight") + scale] = quantised(tensors[name], E4M3, rows=False)
        tensors[name] = codes.view(container)


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("container", [E4M3, torch.uint8])
@pytest.mark.parametrize("sub", ["text_encoder", "text_encoder_2", "transformer", "vae"])
def test_scaled_codes_are_decoded(folder: Path, sub: str, scale: str, container: torch.dtype) -> None:
    path = part_file(folder, sub)
    plain = load_file(path)
    rewrite(path, lambda tensors: scaled_fp8(tensors, scale, container))
    part = open_checkpoint(str(folder)).parts[{value: key for key, value in PARTS.items()}[sub]]
    assert set(part.tensors) == set(plain)
    for name, tensor in plain.items():
        error = (part.tensors[name].read().float() - tensor.float()).abs().max()
        assert error <= tensor.float().abs().max() / 16
    assert len(make_stages(recognise(open_checkpoint(str(folder))), "fp32")) == 6


@pytest.mark.parametrize("sub", ["text_encoder", "text_encoder_2", "transformer", "vae"])
def test_codes_whose_scales_are_lost_are_never_cast(folder: Path, sub: str) -> None:
    def lose(tensors: Tensors) -> None:
        scaled_fp8(tensors, "scale_weight")
        for name in [name for name in tensors if name.endswith("scale_weight")]:
            del tensors[name]

    rewrite(part_file(folder, sub), lose)
    with pytest.raises(CheckpointError, match="scaled_fp8 announces scales and there are none; copy"):
        open_checkpoint(str(folder))


def test_codes_in_a_container_of_integers_are_named(folder: Path) -> None:
    def contain(tensors: Tensors) -> None:
        scaled_fp8(tensors, "scale_weight", torch.uint8)
        for name in [name for name in tensors if "scale" in name]:
            del tensors[name]

    rewrite(part_file(folder, "text_encoder_2"), contain)
    with pytest.raises(CheckpointError, match="t5: .* tensors are integers, so it is quantised: "):
        make_stages(recognise(open_checkpoint(str(folder))), "fp32", ["t5"])


def test_a_cast_that_spared_some_tensors_is_widened(folder: Path) -> None:
    def cast(tensors: Tensors) -> None:
        for name in ("to_q", "to_v"):
            key = f"transformer_blocks.0.attn.{name}.weight"
            tensors[key] = tensors[key].to(torch.float8_e4m3fn)

    rewrite(part_file(folder, "transformer"), cast)
    opened = open_checkpoint(str(folder))
    (denoiser,) = make_stages(recognise(opened), "fp32", ["denoiser"])
    found = denoiser.recipes["double_blocks.0.img_attn.qkv.weight"].load(denoiser.tensors)
    parts = [opened.parts["transformer"].tensors[f"transformer_blocks.0.attn.to_{n}.weight"] for n in "qkv"]
    assert torch.equal(found, torch.cat([part.read().float() for part in parts]))


def test_what_an_encoder_has_beside_is_ignored_by_name(folder: Path) -> None:
    rewrite(
        part_file(folder, "text_encoder"),
        lambda t: t.update(
            {
                "text_projection.weight": torch.ones(48, 48),
                "text_model.embeddings.position_ids": torch.arange(77)[None],
                "logit_scale": torch.ones(()),
            }
        ),
    )
    rewrite(
        part_file(folder, "text_encoder_2"),
        lambda t: t.update(
            {"lm_head.weight": torch.ones(2), "decoder.block.0.layer.0.layer_norm.weight": torch.ones(2)}
        ),
    )
    assert len(make_stages(recognise(open_checkpoint(str(folder))), "fp32")) == 6
    rewrite(part_file(folder, "text_encoder"), lambda t: t.update({"text_projection.lora": torch.ones(2)}))
    with pytest.raises(CheckpointError, match="clip: 1 tensors are not FLUX.1's: text_projection.lora"):
        make_stages(recognise(open_checkpoint(str(folder))), "fp32")


def test_another_models_vae_is_refused(folder: Path) -> None:
    """SD's has 4 channels; FLUX.2's and SD's have 1x1 convolutions around the latents."""

    def around(tensors: Tensors) -> None:
        tensors["quant_conv.weight"], tensors["quant_conv.bias"] = torch.ones(32, 32, 1, 1), torch.ones(32)

    rewrite(part_file(folder, "vae"), around)
    with pytest.raises(CheckpointError, match="vae: 2 tensors are not FLUX.1's: quant_conv.bias"):
        make_stages(recognise(open_checkpoint(str(folder))), "fp32", ["vae_decoder"])
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latent_channels": 4}))
    with pytest.raises(CheckpointError, match="VAE has 4 latent channels and the transformer paints 16"):
        build(str(folder), folder.parent / "bundle", stages=["denoiser"])


def test_tokenizers_are_tried_before_any_work(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.unlink()
    whole = load_tokenizer(NANO / "tokenizer", "clip", Padding(77, "<|endoftext|>"))
    bare = load_tokenizer(folder / "tokenizer", "clip", Padding(77, "<|endoftext|>"))
    assert bare.pad == whole.pad
    assert bare.backend.encode("a red circle").ids == whole.backend.encode("a red circle").ids
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer has none of tokenizer\.json, vocab\.json, spiece"):
        build(str(folder), out)
    (folder / "tokenizer").rmdir()
    with pytest.raises(CheckpointError, match="has no tokenizer for clip; give a diffusers folder"):
        build(str(folder), out)
    shutil.copytree(NANO / "tokenizer", folder / "tokenizer")
    shutil.rmtree(folder / "tokenizer_2")
    shutil.copytree(NANO / "tokenizer", folder / "tokenizer_2")
    with pytest.raises(CheckpointError, match=r"tokens and t5 knows 200; give the one that belongs to it"):
        build(str(folder), out)
    assert not out.exists()
