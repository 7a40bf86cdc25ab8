"""Every official FLUX.1 repository, in the form in which it is published, at full size."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import official_repositories as official
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, FluxTransformer2DModel

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.cli import main
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.survey import Survey, survey
from flux_trt.runtime.errors import CheckpointError

Get = Callable[[str], Path]
VARIANTS = {
    "FLUX.1-Canny-dev": ("canny", ["control"], 512),
    "FLUX.1-Depth-dev": ("depth", ["control"], 512),
    "FLUX.1-Fill-dev": ("fill", ["fill"], 512),
    "FLUX.1-Kontext-dev": ("kontext", ["generate", "image", "inpaint", "edit", "reference"], 512),
    "FLUX.1-Krea-dev": ("krea", ["generate", "image", "inpaint", "edit"], 512),
    "FLUX.1-dev": ("dev", ["generate", "image", "inpaint", "edit"], 512),
    "FLUX.1-schnell": ("schnell", ["generate", "image", "inpaint", "edit"], 256),
}
CHOSEN = {"FLUX.1-Krea-dev": "krea", "FLUX.1-Depth-dev": "depth"}
"""What nothing in the files tells."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A repository's folder, written once."""
    root, written = tmp_path_factory.mktemp("official"), dict[str, Path]()

    def get(name: str) -> Path:
        if name not in written:
            written[name] = official.write(name, root / name)
        return written[name]

    return get


def looked_at(source: Path, out: Path, **asked: object) -> Survey:
    found = survey(str(source), out, precision="bf16", **asked)
    assert found.faults == []
    return found


@pytest.mark.parametrize("name", official.PAINTERS)
def test_a_whole_repository_can_be_built(repository: Get, tmp_path: Path, name: str) -> None:
    found = looked_at(repository(name), tmp_path / "bundle", variant=CHOSEN.get(name))
    variant, tasks, length = VARIANTS[name]
    assert (found.title, found.layout) == (f"FLUX.1 {variant}", "diffusers")
    assert found.tasks == tasks
    assert found.tokenizers == {"clip": 77, "t5": length}
    sizes = {part.name: part.bytes for part in found.parts}
    published = official.repository(name)["files"]
    for part, folder in {"transformer": "transformer", "t5": "text_encoder_2"}.items():
        known = [entry["bytes"] for path, entry in published.items() if path.startswith(f"{folder}/model")]
        known += [e["bytes"] for p, e in published.items() if p.startswith(f"{folder}/diffusion")]
        if known and None not in known:
            assert sizes[part] == sum(known)
    weights = sum(sizes.values())
    assert found.read == weights
    # Fused and swapped layers are made anew, all else is linked where it has the precision.
    assert 0.6 * weights < found.linked + found.written < 1.05 * weights


@pytest.mark.parametrize("name", official.PAINTERS)
def test_the_single_files_of_a_repository_can_be_built(repository: Get, tmp_path: Path, name: str) -> None:
    folder = repository(name)
    file = next(path for path in folder.glob("flux1-*.safetensors"))
    found = looked_at(
        file,
        tmp_path / "bundle",
        variant=VARIANTS[name][0],
        text_encoders=folder,
        vae=folder / "ae.safetensors",
    )
    assert (found.title, found.layout) == (f"FLUX.1 {VARIANTS[name][0]}", "bfl")
    assert found.tasks == VARIANTS[name][1]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("FLUX.1-dev", "krea cannot be told from dev by their files; --variant chooses"),
        ("FLUX.1-Krea-dev", "krea cannot be told from dev by their files; --variant chooses"),
        ("FLUX.1-Depth-dev", "depth cannot be told from canny by their files; --variant chooses"),
        ("FLUX.1-Kontext-dev", None),
        ("FLUX.1-schnell", None),
    ],
)
def test_a_choice_is_said(repository: Get, tmp_path: Path, name: str, line: str | None) -> None:
    beside, *choice = looked_at(repository(name), tmp_path / "bundle").notes
    assert beside.startswith("ae.safetensors, flux1-")
    assert beside.endswith(".safetensors: not read; the parts' own folders are")
    assert choice == ([line] if line else [])


def test_redux_is_named(repository: Get) -> None:
    opened = open_checkpoint(str(repository("FLUX.1-Redux-dev")))
    with pytest.raises(CheckpointError, match=r"has no transformer \(its model_index.json says FluxPriorRed"):
        recognise(opened)


def test_the_readmes_command_works_from_the_hubs_cache(repository: Get, tmp_path: Path) -> None:
    """As the cache keeps a repository: blobs by their hash, and a snapshot of symlinks."""
    about, commit = official.repository("FLUX.1-dev"), official.repository("FLUX.1-dev")["revision"]
    root = tmp_path / "hub" / "models--black-forest-labs--FLUX.1-dev"
    source, snapshot = repository("FLUX.1-dev"), root / "snapshots" / commit
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    fetched = [path for path in source.rglob("*") if path.is_file() and path.parent != source]
    for path in (*fetched, source / "model_index.json"):
        inside = path.relative_to(source)
        blob = root / "blobs" / hashlib.sha256(str(inside).encode()).hexdigest()
        os.link(path, blob)
        (snapshot / inside).parent.mkdir(exist_ok=True)
        (snapshot / inside).symlink_to(os.path.relpath(blob, (snapshot / inside).parent))
    command = ["build", f"{about['repository']}", "--out", str(tmp_path / "dev"), "--precision", "fp16"]
    done = subprocess.run(
        [sys.executable, "-m", "flux_trt.exporter.cli", *command, "--dry-run"],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "FLUX.1 dev, diffusers layout" in done.stdout
    assert not (tmp_path / "dev").exists()


def test_every_fault_is_told(repository: Get, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(repository("FLUX.1-schnell"), folder, copy_function=os.link)
    shutil.rmtree(folder / "tokenizer_2")
    for path, entry in (("transformer", "joint_attention_dim"), ("vae", "latent_channels")):
        config = json.loads((folder / path / "config.json").read_text())
        (folder / path / "config.json").unlink()  # a hard link of the whole one
        (folder / path / "config.json").write_text(json.dumps({**config, entry: config[entry] // 4}))
    (folder / "text_encoder" / "model.safetensors").unlink()
    out = tmp_path / "taken"
    out.write_text("not a bundle")
    done = CliRunner().invoke(main, ["build", str(folder), "--out", str(out), "--dry-run"])
    assert done.exit_code == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    for fault in (
        "exists and is not a bundle",
        "text_encoder: there is no .safetensors file",
        "has no clip; give it with --text-encoders",
        "no tokenizer for t5",
        "t5 has a width of 4096 and the transformer takes 1024",
        "the VAE has 4 latent channels and the transformer paints 16",
        "transformer: 1 tensors are of the wrong shape: context_embedder.weight is [3072, 4096]",
        "vae: ",
    ):
        assert any(fault in line for line in said), (fault, said)


def test_inspect_says_what_a_checkpoint_is(repository: Get) -> None:
    folder, runner = repository("FLUX.1-schnell"), CliRunner()
    done = runner.invoke(main, ["inspect", str(folder), "--json"])
    found = json.loads(done.stdout)
    assert (found["title"], found["layout"], found["lacks"]) == ("FLUX.1 schnell", "diffusers", [])
    assert {name: part["types"] for name, part in found["parts"].items()} == {
        name: ["bfloat16"] for name in ("clip", "t5", "transformer", "vae")
    }
    done = runner.invoke(main, ["inspect", str(folder / "flux1-schnell.safetensors")])
    told = " ".join(done.stdout.split())
    assert "FLUX.1 schnell, bfl layout" in told
    assert "dedistilled cannot be told from schnell by their files; --variant chooses" in told
    assert "has no clip; give it with --text-encoders or --clip" in told
    done = runner.invoke(main, ["inspect", str(folder / "ae.safetensors")])
    assert done.exit_code == 1
    assert "is a vae without a transformer" in done.stderr


def test_a_model_without_guidance_is_not_always_schnell(repository: Get, tmp_path: Path) -> None:
    """Told by the schedule where there is one, by --variant and --scheduler where there is none."""
    schnell, dev = repository("FLUX.1-schnell"), repository("FLUX.1-dev")
    shifted = dev / "scheduler" / "scheduler_config.json"
    assert looked_at(schnell, tmp_path / "a", scheduler=shifted).title == "FLUX.1 dedistilled"
    beside = {"text_encoders": dev, "vae": dev / "ae.safetensors"}
    file = schnell / "flux1-schnell.safetensors"
    assert looked_at(file, tmp_path / "b", **beside).title == "FLUX.1 schnell"
    found = looked_at(file, tmp_path / "c", **beside, variant="dedistilled")
    assert (found.title, found.tokenizers["t5"]) == ("FLUX.1 dedistilled", 512)


@pytest.mark.parametrize("table", ["flux-dev", "flux-schnell", "flux-fill", "flux-control"])
def test_the_tables_are_what_diffusers_makes_of_the_configs(table: str) -> None:
    """Names and shapes of the fixtures, held against the public class built from the published config."""
    name = {
        "flux-dev": "FLUX.1-dev",
        "flux-schnell": "FLUX.1-schnell",
        "flux-fill": "FLUX.1-Fill-dev",
        "flux-control": "FLUX.1-Canny-dev",
    }[table]
    config = json.loads(official.json_files(name)["transformer/config.json"].read_text())
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert {k: v for k, (_, v) in official.tensors(f"{table}.diffusers.json").items()} == shapes


def test_the_vaes_table_is_what_diffusers_makes_of_its_config() -> None:
    config = json.loads(official.json_files("FLUX.1-dev")["vae/config.json"].read_text())
    with torch.device("meta"):
        model = AutoencoderKL.from_config(config)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert {k: v for k, (_, v) in official.tensors("vae.diffusers.json").items()} == shapes


@pytest.mark.slow
def test_the_transformers_graphs_of_an_official_repository(repository: Get, tmp_path: Path) -> None:
    from flux_trt.exporter.build import build

    out = tmp_path / "bundle"
    found = build(str(repository("FLUX.1-dev")), out, precision="bf16", stages=["conditioner", "denoiser"])
    assert set(found.stages) == {"conditioner", "denoiser"}
    names = [path for path in found.files if path.startswith("transformer/")]
    assert names  # what needs no change is linked, not copied
    assert all((out / path).stat().st_nlink > 1 for path in names)
