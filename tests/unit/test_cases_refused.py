"""Checkpoints in the forms that people have and that cannot be built: one line, exit 1, before any work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import NANO, write_bfl, write_bfl_vae
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from flux_trt.exporter.cli import main

Get = Callable[[str], Path]
Asked = tuple[Path, dict[str, Path]]
"""A checkpoint, and what is given beside it by option."""


@pytest.fixture
def folder(checkpoint: Get, tmp_path: Path) -> Path:
    """A checkpoint that the test may break."""
    return shutil.copytree(checkpoint("dev-like"), tmp_path / "checkpoint")


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def weights(folder: Path, sub: str) -> Path:
    return next((folder / sub).glob("*.safetensors"))


def configure(folder: Path, sub: str, **changed: object) -> None:
    path = folder / sub / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def chroma(folder: Path) -> Asked:
    """As `lodestones/Chroma1-HD`: no time, guidance or pooled text, one approximator for all modulations."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        gone = ("time_text_embed.", "norm_out.")
        kept = {name: t for name, t in tensors.items() if not name.startswith(gone) and ".norm1." not in name}
        return {**kept, "distilled_guidance_layer.in_proj.weight": torch.ones(64, 64)}

    rewrite(weights(folder, "transformer"), change)
    configure(folder, "transformer", _class_name="ChromaTransformer2DModel")
    return folder, {}


def pruned(folder: Path, blocks: dict[int, int]) -> Path:
    """A BFL file with some of the single blocks: which becomes which."""
    file = write_bfl(folder, folder / "pruned.safetensors")

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made = {}
        for name, tensor in tensors.items():
            found = re.fullmatch(r"single_blocks\.(\d+)\.(.*)", name)
            if found is None:
                made[name] = tensor
            elif int(found[1]) in blocks:
                made[f"single_blocks.{blocks[int(found[1])]}.{found[2]}"] = tensor
        return made

    rewrite(file, change)
    return file


def with_a_gap(folder: Path) -> Asked:
    return pruned(folder, {0: 0, 1: 2}), {"text-encoders": folder, "vae": folder}


def of_4_channels(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BFL's and diffusers' names are the same at this place."""
    cut = {name: tensors[name][:8] for name in ("encoder.conv_out.weight", "encoder.conv_out.bias")}
    return {**tensors, **cut, "decoder.conv_in.weight": tensors["decoder.conv_in.weight"][:, :4]}


def vae_of_4_channels(folder: Path) -> Asked:
    """As SD's."""
    rewrite(weights(folder, "vae"), of_4_channels)
    configure(folder, "vae", latent_channels=4)
    return folder, {}


def bfl_vae(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Asked:
    file = write_bfl_vae(folder / "ae.safetensors")
    rewrite(file, change)
    return folder, {"vae": file}


def bfl_vae_of_4_channels(folder: Path) -> Asked:
    """As SD's kl-f8 file."""
    return bfl_vae(folder, of_4_channels)


def bfl_vae_with_quant_conv(folder: Path) -> Asked:
    """As FLUX.2's, and any other of 16 channels that has them."""
    around = {"quant_conv.weight": torch.ones(32, 32, 1, 1), "quant_conv.bias": torch.ones(32)}
    return bfl_vae(folder, lambda tensors: {**tensors, **around})


def without_tokenizers(folder: Path) -> Asked:
    shutil.rmtree(folder / "tokenizer")
    shutil.rmtree(folder / "tokenizer_2")
    return folder, {}


def with_an_empty_tokenizer(folder: Path) -> Asked:
    shutil.rmtree(folder / "tokenizer_2")
    (folder / "tokenizer_2").mkdir()
    return folder, {}


def with_a_torn_tokenizer(folder: Path) -> Asked:
    path = folder / "tokenizer_2" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:2000])
    return folder, {}


def with_anothers_tokenizer(folder: Path) -> Asked:
    shutil.rmtree(folder / "tokenizer_2")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    return folder, {}


def transformer_alone(folder: Path) -> Asked:
    shutil.copytree(folder / "transformer", folder / "root")
    return folder / "root", {}


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (chroma, r"transformer is Chroma, not FLUX\.1; it is not supported"),
        (with_a_gap, r"\d tensors are missing: single_blocks\.1\."),
        (vae_of_4_channels, "the VAE has 4 latent channels and the transformer paints 16"),
        (bfl_vae_of_4_channels, "the VAE has 4 latent channels and the transformer paints 16"),
        (bfl_vae_with_quant_conv, r"2 tensors are not FLUX\.1's: quant_conv\.bias, quant_conv\.weight"),
        (without_tokenizers, "has no tokenizer for clip; give .* with --tokenizers"),
        (with_an_empty_tokenizer, r"tokenizer_2 has none of tokenizer\.json, .*; copy it again"),
        (with_a_torn_tokenizer, r"cannot load the tokenizer .*tokenizer_2 .*; check its files"),
        (with_anothers_tokenizer, r"tokens and t5 knows 200; give the one that belongs to it"),
        (transformer_alone, r"has no clip; give it with --text-encoders or --clip"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_it_is_one_line(folder: Path, tmp_path: Path, make: Callable[[Path], Asked], line: str) -> None:
    source, beside = make(folder)
    given = [word for name, path in beside.items() for word in (f"--{name}", str(path))]
    out = tmp_path / "bundle"
    done = CliRunner().invoke(main, ["build", str(source), "--out", str(out), *given])
    assert done.exit_code == 1, done.output
    (said,) = done.stderr.splitlines()
    assert said.startswith("Error: ")
    assert re.search(line, said), said
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def looks_right(source: Path, out: Path, *given: str) -> str:
    done = CliRunner().invoke(main, ["build", str(source), "--out", str(out), *given, "--dry-run"])
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def test_pruned_models_can_be_built(folder: Path, tmp_path: Path) -> None:
    """lite 8B, Flex.1, mini: fewer blocks, numbered from 0."""
    file = pruned(folder, {1: 0})
    said = looks_right(file, tmp_path / "bundle", "--text-encoders", str(folder), "--vae", str(folder))
    assert "FLUX.1 dev, bfl layout" in said


def test_a_vae_whose_config_has_no_shift_can_be_built(folder: Path, tmp_path: Path) -> None:
    configure(folder, "vae", shift_factor=None)
    looks_right(folder, tmp_path / "bundle")


def test_a_tokenizer_of_one_file_is_enough(folder: Path, tmp_path: Path) -> None:
    for sub in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(folder / sub)
        (folder / sub).mkdir()
        shutil.copyfile(NANO / sub / "tokenizer.json", folder / sub / "tokenizer.json")
    assert "clip 77 tokens, t5 512 tokens" in looks_right(folder, tmp_path / "bundle")


def test_a_transformer_alone_from_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    """A repository with config.json, an index and shards at its root, by its id; no hub."""
    from diffusers import FluxTransformer2DModel

    made = FluxTransformer2DModel.from_pretrained(folder / "transformer")
    root = tmp_path / "hub" / "models--somebody--flux-transformer"
    snapshot = root / "snapshots" / "0123abcd"
    made.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abcd")
    (root / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "saved").iterdir())):
        path.rename(root / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert len(list(snapshot.glob("*.safetensors"))) > 2
    command = ["build", "somebody/flux-transformer", "--out", str(tmp_path / "bundle"), "--dry-run"]

    def run(*given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flux_trt.exporter.cli", *command, *given],
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    whole = run("--text-encoders", str(folder), "--vae", str(folder))
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "FLUX.1 dev, diffusers layout" in whole.stdout
    shard = sorted(snapshot.glob("*.safetensors"))[1]
    shard.unlink()
    torn = run("--text-encoders", str(folder), "--vae", str(folder))
    assert torn.returncode == 1
    (said,) = torn.stderr.splitlines()
    assert re.fullmatch(rf"Error: cannot read .*{shard.name}: No such file or directory; .*", said)
    assert not (tmp_path / "bundle").exists()
