"""FLUX.2's members at full size, as sparse files with the public classes' names and shapes: looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import flux2_checkpoints as flux2
import pytest
import torch
from diffusers import AutoencoderKLFlux2
from full_size_flux2 import SIZES, write_checkpoint
from full_size_sparse import write_sparse

from flux_trt.exporter.survey import Survey, survey

Get = Callable[[str], Path]
USED = {
    "klein-4b": (3_875_544_576, 3_114_088_192),
    "klein-9b": (9_078_581_248, 5_831_883_520),
    "dev": (32_223_281_152, 17_343_754_240),
}
"""Numbers of the transformer, and of the text encoder up to its last tap."""
VAE = 34_425_856 + 49_620_259 + 2 * 256
TITLES = {"klein-4b": "FLUX.2 klein 4B", "klein-9b": "FLUX.2 klein 9B", "dev": "FLUX.2 dev"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A member's files, written once: a BFL-named transformer, an encoder with its tokenizer, a VAE."""
    root, written = tmp_path_factory.mktemp("full size"), set[str]()
    with torch.device("meta"):
        vae = AutoencoderKLFlux2()
    shapes = {
        name: tuple(value.shape) for name, value in vae.state_dict().items() if "num_batches" not in name
    }

    def get(member: str) -> Path:
        folder = root / member
        if member not in written:
            write_checkpoint(member, folder)
            family = "dev" if member == "dev" else "klein"
            found = flux2.tokenizer(family, "left" if member == "dev" else "right")
            found.model_max_length = 131072
            found.save_pretrained(folder / "text_encoder")
            write_sparse(folder / "vae" / "diffusion_pytorch_model.safetensors", shapes)
            config = {**vae.config, "_class_name": "AutoencoderKLFlux2"}
            (folder / "vae" / "config.json").write_text(json.dumps(config))
            written.add(member)
        return folder

    return get


def looked_at(folder: Path, member: str, encoder: Path | None = None, **asked: object) -> Survey:
    return survey(
        str(folder / f"flux-2-{member}.safetensors"),
        folder / "bundle",
        text_encoders=(encoder or folder) / "text_encoder",
        vae=folder / "vae",
        **{"precision": "bf16", **asked},
    )


@pytest.mark.parametrize("member", SIZES)
def test_a_member_is_told_and_linked_whole(checkpoint: Get, member: str) -> None:
    found = looked_at(checkpoint(member), member)
    assert (found.faults, found.title, found.layout) == ([], TITLES[member], "bfl")
    assert found.tokenizers == {"text": 512}
    assert found.tasks == ["generate", "image", "inpaint", "edit", "reference"]
    stages = {stage.name: stage for stage in found.stages}
    transformer, text = USED[member]
    assert stages["conditioner"].linked + stages["denoiser"].linked == 2 * transformer
    assert stages["text"].linked == 2 * text, "what lies behind the last tap is not used"
    assert found.linked + found.written == 2 * (transformer + text + VAE)
    assert sum(stage.written for stage in found.stages) == 0


@pytest.mark.parametrize("member", ["klein-4b", "klein-9b"])
def test_fp8_keeps_what_is_sensitive_in_the_base_type(checkpoint: Get, member: str) -> None:
    found = looked_at(checkpoint(member), member, precision="fp8")
    assert found.faults == []
    stages = {stage.name: stage for stage in found.stages}
    assert {name: stage.precision for name, stage in stages.items()} == {
        "text": "fp8",
        "conditioner": "bf16",
        "denoiser": "fp8",
        "vae_encoder": "bf16",
        "vae_decoder": "bf16",
    }
    transformer, text = USED[member]
    assert stages["denoiser"].written < 1.03 * transformer
    assert 1.1 * text < stages["text"].written + stages["text"].linked < 1.35 * text, (
        "embedding, tapped layers"
    )


def test_a_member_with_the_encoder_of_another(checkpoint: Get) -> None:
    found = looked_at(checkpoint("klein-4b"), "klein-4b", checkpoint("klein-9b"))
    assert found.faults == [
        "the text encoder gives 3 x 4096 = 12288 channels and the transformer takes 7680; "
        "give this model's own with --text-encoders"
    ]


def test_variants_are_chosen_among_those_of_the_size(checkpoint: Get) -> None:
    folder = checkpoint("klein-9b")
    assert looked_at(folder, "klein-9b", variant="kv").title == "FLUX.2 klein 9B KV"
    assert looked_at(folder, "klein-9b", variant="base").title == "FLUX.2 klein base 9B"
    (fault,) = looked_at(checkpoint("klein-4b"), "klein-4b", variant="kv").faults
    assert fault == "these tensors are not FLUX.2's kv; --variant can be distilled, base"


def test_a_tower_that_is_cut_short(checkpoint: Get, tmp_path: Path) -> None:
    folder = checkpoint("klein-4b")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    (tmp_path / "text_encoder").mkdir()
    for file in (folder / "text_encoder").iterdir():
        (tmp_path / "text_encoder" / file.name).symlink_to(file)
    (tmp_path / "text_encoder" / "config.json").unlink()
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 26}))
    assert any(
        line.startswith("the text encoder has 26 layers and is read behind layer 27: it is cut short")
        for line in looked_at(folder, "klein-4b", tmp_path).faults
    )
