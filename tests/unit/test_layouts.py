"""Every layout that people have gives the same weights as the diffusers folder it was made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import NANO, set_pipeline, write_bfl, write_bfl_vae, write_random
from conftest import RANDOM
from safetensors.torch import load_file, save_file

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.checkpoints.tokenizer import load_tokenizer
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.survey import survey
from flux_trt.runtime.bundle.rules import Constant
from flux_trt.runtime.errors import CheckpointError

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose CLIP has heads of 64 channels and whose VAE is in the form that BFL publishes."""
    folder = tmp_path_factory.mktemp("layouts") / "source"
    write_random(folder, **RANDOM["dev-like"], clip_width=512, clip_heads=8)
    shutil.rmtree(folder / "vae")
    write_bfl_vae(folder / "ae.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[str, Weights]:
    return weights(source, vae=source / "ae.safetensors")


def weights(source: Path, **beside: Any) -> dict[str, Weights]:
    """Stage -> parameter -> value, as a build would write them, in float32."""
    model = recognise(open_checkpoint(str(source), **beside))
    return {
        stage.name: {name: recipe.load(stage.tensors).float() for name, recipe in stage.recipes.items()}
        for stage in make_stages(model, "fp32")
    }


def part_file(folder: Path, sub: str) -> Path:
    return next((folder / sub).glob("*.safetensors"))


def published_clip(folder: Path) -> Weights:
    """Under the names of the files on the hub: transformers 5 drops their prefix."""
    found = load_file(part_file(folder, "text_encoder"))
    return {f"text_model.{name.removeprefix('text_model.')}": value for name, value in found.items()}


def prefixed(prefix: str, tensors: Weights) -> Weights:
    return {prefix + name: value for name, value in tensors.items()}


def bfl(source: Path, folder: Path) -> Weights:
    return load_file(write_bfl(source, folder / "bfl.safetensors"))


def all_in_one(source: Path, folder: Path, vae: str = "vae.") -> Weights:
    """The prefixes of ComfyUI's supported_models; ComfyUI#4624 has the 17 GB file."""
    clip, t5 = "text_encoders.clip_l.", "text_encoders.t5xxl."
    found = prefixed("model.diffusion_model.", bfl(source, folder))
    found |= prefixed(f"{clip}transformer.", published_clip(source))
    found |= {
        f"{clip}logit_scale": torch.ones(()),
        f"{clip}transformer.text_projection.weight": torch.ones(4, 4),
    }
    found |= prefixed(f"{t5}transformer.", load_file(part_file(source, "text_encoder_2")))
    found |= {f"{t5}logit_scale": torch.ones(())}
    found |= prefixed(vae, load_file(source / "ae.safetensors"))
    return found


def same(found: dict[str, Weights], expected: dict[str, Weights]) -> bool:
    """Every parameter of every stage; a text encoder's file may hold more than the stage uses."""
    for stage, parameters in expected.items():
        for name, value in parameters.items():
            assert torch.equal(found[stage][name], value), (stage, name)
    return set(found) == set(expected)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_a_bfl_file_under_any_prefix(
    source: Path, expected: dict[str, Weights], tmp_path: Path, prefix: str
) -> None:
    file = tmp_path / "flux.safetensors"
    save_file(prefixed(prefix, bfl(source, tmp_path)), file)
    assert same(weights(file, text_encoders=source, vae=source / "ae.safetensors"), expected)


def test_newer_comfyuis_spelling_of_the_norms(
    source: Path, expected: dict[str, Weights], tmp_path: Path
) -> None:
    found = {
        name.replace("_norm.scale", "_norm.weight"): value for name, value in bfl(source, tmp_path).items()
    }
    assert "double_blocks.0.img_attn.norm.query_norm.weight" in found
    save_file(found, tmp_path / "flux.safetensors")
    beside = {"text_encoders": source, "vae": source / "ae.safetensors"}
    assert same(weights(tmp_path / "flux.safetensors", **beside), expected)


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_a_single_file_with_diffusers_names(
    source: Path, expected: dict[str, Weights], tmp_path: Path, prefix: str
) -> None:
    file = tmp_path / "flux.safetensors"
    save_file(prefixed(prefix, load_file(part_file(source, "transformer"))), file)
    assert same(weights(file, text_encoders=source, vae=source / "ae.safetensors"), expected)


@pytest.mark.parametrize("vae", ["vae.", "first_stage_model."])
def test_an_all_in_one_file(source: Path, expected: dict[str, Weights], tmp_path: Path, vae: str) -> None:
    found = all_in_one(source, tmp_path, vae)
    file = tmp_path / "all in one.safetensors"
    save_file({name: value.contiguous().clone() for name, value in found.items()}, file)
    assert same(weights(file), expected)
    with pytest.raises(CheckpointError, match="has no tokenizer for clip; give .* with --tokenizers"):
        build(str(file), tmp_path / "bundle")
    found["cond_stage_model.model.weight"] = torch.ones(1)
    save_file({name: value.contiguous().clone() for name, value in found.items()}, file)
    with pytest.raises(
        CheckpointError, match="1 tensors are of no known part: cond_stage_model.model.weight"
    ):
        open_checkpoint(str(file))


def test_loose_encoders_and_a_vae_under_a_prefix(
    source: Path, expected: dict[str, Weights], tmp_path: Path
) -> None:
    flux = write_bfl(source, tmp_path / "flux.safetensors")
    save_file(published_clip(source), tmp_path / "clip_l.safetensors")
    save_file(prefixed("vae.", load_file(source / "ae.safetensors")), tmp_path / "vae.safetensors")
    beside = {
        "clip": tmp_path / "clip_l.safetensors",
        "t5": part_file(source, "text_encoder_2"),
        "vae": tmp_path / "vae.safetensors",
    }
    assert same(weights(flux, **beside), expected)
    with pytest.raises(CheckpointError, match="clip_l.safetensors is a clip without a transformer"):
        open_checkpoint(str(tmp_path / "clip_l.safetensors"))
    with pytest.raises(CheckpointError, match="holds no t5 but clip; check --t5"):
        open_checkpoint(str(flux), t5=tmp_path / "clip_l.safetensors")


def test_a_loose_clip_whose_heads_nobody_knows_is_refused(tmp_path: Path) -> None:
    save_file(published_clip(NANO), tmp_path / "clip.safetensors")
    opened = open_checkpoint(str(NANO), clip=tmp_path / "clip.safetensors")
    with pytest.raises(CheckpointError, match="clip has a width of 64, as no published one"):
        make_stages(recognise(opened), "fp32", ["clip"])
    assert open_checkpoint(str(NANO), clip=NANO / "text_encoder").parts["clip"].config["hidden_size"] == 64


def test_a_vae_with_diffusers_names_in_a_single_file(
    source: Path, expected: dict[str, Weights], tmp_path: Path
) -> None:
    model = recognise(open_checkpoint(str(source), vae=source / "ae.safetensors"))
    stage = model.stage("vae_decoder")
    theirs = {name: recipe.load(stage.tensors) for name, recipe in stage.recipes.items()}
    save_file({name: value.contiguous() for name, value in theirs.items()}, tmp_path / "vae.safetensors")
    assert same(weights(source, vae=tmp_path / "vae.safetensors"), expected)


def test_a_transformer_alone_with_its_config(
    source: Path, expected: dict[str, Weights], tmp_path: Path
) -> None:
    """A repository with config.json and the shards at its root; and a folder with transformer/ alone."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel.from_pretrained(source / "transformer")
    model.save_pretrained(tmp_path / "root", max_shard_size="200KB")
    assert len(list((tmp_path / "root").glob("*.safetensors"))) > 2
    shutil.copytree(source / "transformer", tmp_path / "nested" / "transformer")
    for folder in (tmp_path / "root", tmp_path / "nested"):
        assert same(weights(folder, text_encoders=source, vae=source / "ae.safetensors"), expected)
    shard = sorted((tmp_path / "root").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"cannot read .*{shard.name}: No such file"):
        open_checkpoint(str(tmp_path / "root"))


@pytest.mark.parametrize(
    ("weights_name", "index_name"),
    [
        ("diffusion_pytorch_model.fp16.safetensors", None),
        (
            "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
    ],
)
def test_a_folder_of_a_variant(
    source: Path, expected: dict[str, Weights], tmp_path: Path, weights_name: str, index_name: str | None
) -> None:
    """diffusers' `save_pretrained(variant="fp16")`, whole and in shards."""
    folder = shutil.copytree(source, tmp_path / "variant")
    whole = part_file(folder, "transformer")
    tensors = load_file(whole)
    whole.unlink()
    if index_name is None:
        save_file(tensors, whole.with_name(weights_name))
    else:
        names = sorted(tensors)
        halves = {1: names[::2], 2: names[1::2]}
        where = {name: weights_name.format(k) for k, half in halves.items() for name in half}
        for k, half in halves.items():
            save_file({name: tensors[name] for name in half}, whole.with_name(weights_name.format(k)))
        whole.with_name(index_name).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert same(weights(folder, vae=source / "ae.safetensors"), expected)
    if index_name is None:
        save_file(tensors, whole.with_name("diffusion_pytorch_model.bf16.safetensors"))
        with pytest.raises(CheckpointError, match="has several weights .*; leave the ones that you mean"):
            open_checkpoint(str(folder))


def test_tokenizers_of_a_bundle(source: Path, bundle: Callable[..., Path]) -> None:
    """Its files are already what a bundle needs; ids are those of the folder's."""
    other = bundle("flux-nano")
    opened = open_checkpoint(str(source), vae=source / "ae.safetensors", tokenizers=str(other))
    padding = recognise(opened).numbers().padding
    for name, folder in (("clip", NANO / "tokenizer"), ("t5", NANO / "tokenizer_2")):
        ours, theirs = (
            load_tokenizer(path, name, padding[name]) for path in (opened.tokenizers[name], folder)
        )
        assert ours.backend.encode("a red circle").ids == theirs.backend.encode("a red circle").ids
        assert ours.pad == theirs.pad
    with pytest.raises(CheckpointError, match="has neither tokenizer/ nor tokenizer_2/, and is no bundle"):
        open_checkpoint(str(source), tokenizers=str(source / "transformer"))


def test_another_schedule(source: Path, tmp_path: Path) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.5}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    opened = open_checkpoint(str(source), scheduler=tmp_path / "scheduler_config.json")
    assert recognise(opened).numbers().schedule == Constant(shift=2.5, round=None)


ZIP, PICKLE = b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00." + bytes(60)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ZIP, r"is a pickle \(a zip of torch.save\), which is not loaded"),
        (PICKLE, "is a pickle, which is not loaded"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>Access denied</html>", "is a page of HTML and not the weights"),
        (b'{"error": "Repository not found"}', "is a JSON file and not the weights"),
        (bytes(100), "is not a whole safetensors file"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "flux1-dev.safetensors"
    path.write_bytes(content)
    for beside in ({}, {"vae": path}, {"clip": path}, {"t5": path}):
        with pytest.raises(CheckpointError, match=said) as fault:
            open_checkpoint(str(NANO if beside else path), **beside)
        assert "\n" not in str(fault.value)


def test_a_half_download_is_named(source: Path, tmp_path: Path) -> None:
    whole = (source / "ae.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        CheckpointError, match=r"not a whole safetensors file \(a tensor ends at byte \d+ and the"
    ):
        open_checkpoint(str(NANO), vae=tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "is a LoRA, not a model"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "is a LoRA, not a model"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_B.weight", "is a LoRA, not a model"),
        ("lora_transformer_transformer_blocks_0_attn_to_q.lora_up.weight", "is a LoRA, not a model"),
        ("double_blocks.0.processor.qkv_lora1.down.weight", "is a LoRA, not a model"),
        ("lycoris_transformer_blocks_0_attn_to_q.lokr_w1", "is a LoRA, not a model"),
        ("base_model.model.transformer_blocks.0.attn.to_q.base_layer.weight", "is wrapped by PEFT"),
        ("distilled_guidance_layer.in_proj.weight", "is Chroma, not FLUX.1"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "is Stable Diffusion 3"),
        ("model.diffusion_model.input_blocks.0.0.weight", "is Stable Diffusion, not"),
        ("redux_up.weight", "is FLUX.1 Redux"),
        ("some.other.weight", "holds no FLUX transformer, VAE or text encoder .it has some.other.weight"),
    ],
)
def test_other_models_are_named(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.ones(2, 2)}, path)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(str(path))


def test_a_lora_beside_the_weights_is_told_of(source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "with a lora")
    save_file({"x": torch.ones(1)}, folder / "pytorch_lora_weights.safetensors")
    set_pipeline(folder, "FluxPipeline")
    assert open_checkpoint(str(folder)).notes == (
        "pytorch_lora_weights.safetensors: a LoRA beside the weights is not used; --lora merges it",
        "ae.safetensors: not read; the parts' own folders are",
    )


@pytest.mark.parametrize(
    "part", ["text_encoders.t5xxl.transformer.shared.weight", "vae.decoder.conv_in.weight"]
)
def test_a_nan_is_found_in_every_part_of_an_all_in_one_file(source: Path, tmp_path: Path, part: str) -> None:
    found = {name: value.contiguous().clone() for name, value in all_in_one(source, tmp_path).items()}
    found[part].view(-1)[0] = torch.nan
    save_file(found, tmp_path / "flux.safetensors")
    stages = ["t5", "conditioner", "denoiser", "vae_decoder"]
    with pytest.raises(
        CheckpointError, match=r"(t5: shared|vae: decoder.conv_in).weight has values that are not"
    ):
        build(str(tmp_path / "flux.safetensors"), tmp_path / "bundle", stages=stages)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("option", "sub", "lost"),
    [
        ("clip", "text_encoder", "text_model.embeddings.token_embedding.weight"),
        ("t5", "text_encoder_2", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    ],
)
def test_a_loose_encoder_that_is_not_whole_is_one_line(
    source: Path, tmp_path: Path, option: str, sub: str, lost: str
) -> None:
    """Also where other stages are built, and in a dry run beside other faults."""
    tensors = published_clip(source) if option == "clip" else load_file(part_file(source, sub))
    del tensors[lost]
    save_file(tensors, tmp_path / "loose.safetensors")
    beside = {option: tmp_path / "loose.safetensors", "vae": source / "ae.safetensors"}
    for stages in (None, ["denoiser"]):
        found = survey(str(source), tmp_path / "bundle", stages=stages, **beside)
        assert any(f"the {option} file lacks" in fault for fault in found.faults)
        assert found.title == "FLUX.1 dev"
