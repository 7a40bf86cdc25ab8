from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import NANO, set_pipeline, write_bfl
from safetensors.torch import load_file, save_file

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux1.params import FluxParams, flux_params
from flux_trt.exporter.families.flux1.variants import candidates
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.runtime.errors import BuildError, CheckpointError

Get = Callable[[str], Path]


@pytest.fixture
def folder(checkpoint: Get, tmp_path: Path) -> Path:
    """A checkpoint that the test may break."""
    return shutil.copytree(checkpoint("dev-like"), tmp_path / "checkpoint")


def test_a_diffusers_folder(checkpoint: Get) -> None:
    found = open_checkpoint(str(NANO))
    assert (found.layout, found.pipeline) == ("diffusers", "FluxKontextPipeline")
    assert set(found.parts) == {"transformer", "vae", "clip", "t5"}
    assert set(found.tokenizers) == {"clip", "t5"}


def test_shards_are_one_part(folder: Path) -> None:
    from diffusers import FluxTransformer2DModel

    whole = open_checkpoint(str(folder)).parts["transformer"]
    name = "proj_out.weight"
    expected = whole.tensors[name].read()
    model = FluxTransformer2DModel.from_pretrained(folder / "transformer")
    shutil.rmtree(folder / "transformer")
    model.save_pretrained(folder / "transformer", max_shard_size="200KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    shards = open_checkpoint(str(folder)).parts["transformer"]
    assert set(shards.tensors) == set(whole.tensors)
    assert torch.equal(shards.tensors[name].read(), expected)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_bfl_and_diffusers_tell_the_same_shape(checkpoint: Get, tmp_path: Path, prefix: str) -> None:
    source = checkpoint("dev-like")
    file = write_bfl(source, tmp_path / "any name at all.safetensors", prefix)
    found = open_checkpoint(str(file), text_encoders=source, vae=source)
    assert found.layout == "bfl"
    assert flux_params(found.parts["transformer"]) == flux_params(
        open_checkpoint(str(source)).parts["transformer"]
    )
    assert [stage.name for stage in make_stages(recognise(found), "fp32")] == [
        stage.name for stage in make_stages(recognise(open_checkpoint(str(source))), "fp32")
    ]


def test_a_hub_id_is_served_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's own layout: refs/main names a snapshot, whose files are symlinks to blobs."""
    import huggingface_hub.constants

    repository = tmp_path / "hub" / "models--somebody--flux"
    snapshot = repository / "snapshots" / "abc123"
    for index, path in enumerate(p for p in sorted(folder.rglob("*")) if p.is_file()):
        blob = repository / "blobs" / str(index)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = open_checkpoint("somebody/flux")
    assert found.layout == "diffusers"
    assert set(found.parts) == {"transformer", "vae", "clip", "t5"}
    with pytest.raises(CheckpointError, match="somebody/other is neither a path nor in the hub cache"):
        open_checkpoint("somebody/other")


def params(in_channels: int, guidance_embed: bool) -> FluxParams:
    return FluxParams(
        in_channels=in_channels,
        out_channels=64,
        vec_in_dim=48,
        context_in_dim=80,
        hidden_size=96,
        mlp_ratio=4.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=(16, 16, 16),
        theta=1e4,
        guidance_embed=guidance_embed,
    )


@pytest.mark.parametrize(
    ("in_channels", "guidance", "pipeline", "asked", "name"),
    [
        (64, True, "FluxPipeline", None, "dev"),
        (64, True, None, None, "dev"),
        (64, True, None, "krea", "krea"),
        (64, True, None, "kontext", "kontext"),
        (64, True, "FluxKontextPipeline", None, "kontext"),
        (64, False, "FluxPipeline", None, "schnell"),
        (64, False, None, None, "schnell"),
        (384, True, "FluxFillPipeline", None, "fill"),
        (384, True, None, None, "fill"),
        (128, True, "FluxControlPipeline", None, "canny"),
        (128, True, "FluxControlPipeline", "depth", "depth"),
    ],
)
def test_variants_are_told_by_what_is_inside(
    in_channels: int, guidance: bool, pipeline: str | None, asked: str | None, name: str
) -> None:
    assert candidates(params(in_channels, guidance), pipeline, asked)[0].name == name


def test_a_variant_that_the_tensors_cannot_be() -> None:
    with pytest.raises(CheckpointError, match="not FLUX.1 schnell; --variant can be dev, krea, kontext"):
        candidates(params(64, True), None, "schnell")
    with pytest.raises(CheckpointError, match="no FLUX.1 variant has 65 input channels"):
        candidates(params(65, True))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Checkpoint:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return open_checkpoint(str(folder))


def test_missing_tensors_are_counted_and_named(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith("transformer_blocks.0.attn.to_")]:
            del tensors[name]

    found = edit(folder, change)
    with pytest.raises(
        CheckpointError, match=r"transformer: 10 tensors are missing: transformer_blocks\.0"
    ) as f:
        make_stages(recognise(found), "fp32")
    assert "\n" not in str(f.value)


def test_misshapen_tensors_are_named_with_both_shapes(folder: Path) -> None:
    found = edit(folder, lambda t: t.update({"proj_out.weight": torch.zeros(64, 95)}))
    with pytest.raises(CheckpointError, match=r"proj_out.weight is \[64, 95\], not \[64, 96\]"):
        make_stages(recognise(found), "fp32")
    parts = {"transformer_blocks.0.attn.to_k.weight": torch.zeros(96, 7)}
    with pytest.raises(CheckpointError, match="of the wrong shape: transformer_blocks.0.attn.to_q.weight"):
        make_stages(recognise(edit(folder, lambda t: t.update(parts))), "fp32")


def test_tensors_that_are_not_flux_are_refused(folder: Path) -> None:
    found = edit(folder, lambda t: t.update({"lora.up": torch.zeros(1), "lora.down": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="2 tensors are not FLUX.1's: lora.down, lora.up"):
        make_stages(recognise(found), "fp32")


def test_pickles_are_never_loaded(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin is a pickle and is not loaded"):
        open_checkpoint(str(folder))


def test_t5_in_fp16_is_refused(checkpoint: Get) -> None:
    with pytest.raises(BuildError, match="T5 overflows in fp16"):
        make_stages(recognise(open_checkpoint(str(NANO))), "fp32", chosen={"t5": "fp16"})


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: [shutil.rmtree(path) for path in f.iterdir() if path.is_dir()], "has no transformer"),
        (lambda f: (f / "vae" / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "vae" / "config.json").write_text("{"), "cannot read .*config.json"),
        (lambda f: (f / "vae" / "config.json").write_text("[1]"), "does not hold a JSON object"),
    ],
)
def test_broken_folders(folder: Path, break_it: Callable[[Path], object], said: str) -> None:
    break_it(folder)
    with pytest.raises(CheckpointError, match=said):
        recognise(open_checkpoint(str(folder)))


def test_a_config_that_no_model_has(folder: Path) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "up_block_types": ["NoBlock"] * 4}))
    with pytest.raises(CheckpointError, match="no vae can be made from its config"):
        make_stages(recognise(open_checkpoint(str(folder))), "fp32")


def test_a_missing_part_says_how_to_give_it(checkpoint: Get, tmp_path: Path) -> None:
    file = write_bfl(checkpoint("dev-like"), tmp_path / "flux.safetensors")
    found = open_checkpoint(str(file))
    with pytest.raises(CheckpointError, match="has no clip; give it with --text-encoders"):
        make_stages(recognise(found), "fp32")
    assert len(make_stages(recognise(found), "fp32", ["conditioner", "denoiser"])) == 2


def test_files_of_the_wrong_kind(checkpoint: Get, tmp_path: Path) -> None:
    vae = checkpoint("dev-like") / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match="is a vae without a transformer: give it with --vae"):
        open_checkpoint(str(vae))
    flux = write_bfl(checkpoint("dev-like"), tmp_path / "flux.safetensors")
    with pytest.raises(CheckpointError, match="holds no vae but transformer; check --vae"):
        open_checkpoint(str(flux), vae=flux)
    with pytest.raises(CheckpointError, match="no checkpoint at ./nowhere"):
        open_checkpoint("./nowhere")


def test_a_scheduler_that_flux_does_not_use(folder: Path) -> None:

    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_beta_sigmas": True}))
    with pytest.raises(CheckpointError, match="use_beta_sigmas"):
        recognise(open_checkpoint(str(folder))).numbers()


def test_the_pipeline_class_tells_kontext(folder: Path) -> None:
    set_pipeline(folder, "FluxKontextPipeline")
    found = open_checkpoint(str(folder))
    assert candidates(flux_params(found.parts["transformer"]), found.pipeline)[0].name == "kontext"
