"""Pictures of bundles with LoRAs in them, beside diffusers' pipelines with `load_lora_weights`."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import loras
import numpy as np
import pytest
import torch
from diffusers import FluxControlPipeline, FluxPipeline
from PIL import Image
from safetensors.torch import load_file

from flux_trt.exporter.build import build
from flux_trt.exporter.quantise.e4m3 import E4M3, Fp8
from flux_trt.exporter.verify.verify import verify
from flux_trt.runtime import Pipeline
from flux_trt.runtime.bundle import manifest

Get = Callable[..., Path]
PROMPT = "a red circle at the top left on a white background"
ASKED = {"guidance": 2.0, "steps": 6}


@pytest.fixture(scope="module")
def files(checkpoint: Get, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRAs for flux-nano that diffusers reads, one with CLIP's part too."""
    source, folder = checkpoint("flux-nano"), tmp_path_factory.mktemp("loras")
    found = {}
    for seed, name in enumerate(("one", "two")):
        state = loras.peft(source, loras.update(source, seed, size=0.1))[0]
        if name == "two":
            for module, (down, up) in loras.encoder(source, "text_encoder", loras.CLIP)[0].items():
                state |= loras.plain(f"text_encoder.text_model.{module}", (down, up))
        found[name] = loras.save(folder / f"{name}.safetensors", (state, {}))
    return found


@pytest.fixture(scope="module")
def made(bundle: Get, checkpoint: Get, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A bundle of flux-nano with LoRAs: the plain one's stages are reused where they can be."""
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    shutil.copytree(bundle("flux-nano"), out)

    def get(*wanted: str, variant: str | None = None) -> Path:
        build(str(checkpoint("flux-nano")), out, lora=wanted, variant=variant)
        return out

    return get


def painted(root: Path) -> np.ndarray:
    with Pipeline.load(root, "onnxruntime") as pipeline:
        (found,) = pipeline.generate(PROMPT, size=(64, 64), seed=7, **ASKED)
    return np.asarray(found).astype(int)


def by_diffusers(source: Path, wanted: Mapping[Path, float]) -> np.ndarray:
    pipe = FluxPipeline.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    names = [f"adapter{number}" for number in range(len(wanted))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, path in zip(names, wanted, strict=True):
            pipe.load_lora_weights(str(path), adapter_name=name)
        if names:
            pipe.set_adapters(names, list(wanted.values()))
    (found,) = pipe(
        PROMPT,
        width=64,
        height=64,
        num_inference_steps=ASKED["steps"],
        guidance_scale=ASKED["guidance"],
        generator=torch.Generator().manual_seed(7),
        max_sequence_length=32,
        output_type="np",
    ).images
    return (found * 255).round().astype(int)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((np.abs(ours - theirs) <= 1).mean())


@pytest.mark.parametrize(
    "wanted", [{"one": 1.0}, {"one": 0.5}, {"one": -1.0}, {"one": 0.7, "two": 0.4}], ids=str
)
def test_pictures_equal_diffusers(
    wanted: dict[str, float], checkpoint: Get, files: dict[str, Path], made: Callable[..., Path]
) -> None:
    source = checkpoint("flux-nano")
    theirs = by_diffusers(source, {files[name]: strength for name, strength in wanted.items()})
    ours = painted(made(*(f"{files[name]}:{strength}" for name, strength in wanted.items())))
    assert agreement(ours, theirs) >= 0.999
    assert agreement(theirs, by_diffusers(source, {})) < 0.9, "a LoRA that changes nothing shows nothing"


def test_a_control_lora_makes_a_control_model(
    checkpoint: Get, made: Callable[..., Path], tmp_path: Path
) -> None:
    """As FLUX.1-Canny-dev-lora does of FLUX.1-dev: other channels, replaced norms, the task `control`."""
    source = checkpoint("flux-nano")
    path = loras.save(tmp_path / "canny.safetensors", (loras.control_by_diffusers(source), {}))
    edges = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    pipe = FluxControlPipeline.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(str(path))
    (theirs,) = pipe(
        PROMPT,
        control_image=edges,
        width=64,
        height=64,
        num_inference_steps=ASKED["steps"],
        guidance_scale=ASKED["guidance"],
        generator=torch.Generator().manual_seed(7),
        max_sequence_length=32,
        output_type="np",
    ).images
    root = made(str(path), variant="canny")
    found = manifest.read(root)
    assert (found.variant, found.tasks) == ("canny", ["control"])
    with Pipeline.load(root, "onnxruntime") as pipeline:
        (ours,) = pipeline.generate(PROMPT, control=edges, seed=7, **ASKED)
    assert agreement(np.asarray(ours).astype(int), (theirs * 255).round().astype(int)) >= 0.999


def test_with_then_without_is_what_it_was(
    bundle: Get, files: dict[str, Path], made: Callable[..., Path]
) -> None:
    """The bundle's bytes are those of one that never had a LoRA in it."""
    plain = manifest.read(bundle("flux-nano"))
    with_one = manifest.read(made(f"{files['one']}:0.5"))
    assert with_one.files != plain.files
    (said,) = with_one.provenance.loras
    assert (said.file, said.strength) == (str(files["one"]), 0.5)
    assert any(source.sha256 == said.sha256 for source in with_one.provenance.sources)
    without = manifest.read(made())
    assert without.files == plain.files and without.stages == plain.stages
    assert without.provenance.loras == []


def test_verify_has_diffusers_fuse_what_it_reads(files: dict[str, Path], made: Callable[..., Path]) -> None:
    rows = list(verify(made(f"{files['one']}:0.7", f"{files['two']}:0.4")))
    assert all(row.passed for row in rows)
    oracles = {row.stage: row.oracle for row in rows}
    assert oracles["denoiser"] == oracles["conditioner"] == "diffusers, LoRA loaded and fused by diffusers"
    assert oracles["clip"] == "transformers, LoRA loaded and fused by diffusers"
    assert oracles["t5"] == "transformers"


def test_only_the_stages_that_a_lora_touches_are_built_anew(
    checkpoint: Get, files: dict[str, Path], tmp_path: Path
) -> None:
    source, out, lines = checkpoint("dev-like"), tmp_path / "bundle", list[str]()

    def some(name: str, inside: str, seed: int = 0) -> Path:
        update = {name: pair for name, pair in loras.update(source, seed).items() if inside in name}
        return loras.save(tmp_path / f"{name}.safetensors", loras.peft(source, update))

    step, once = some("step", ".attn."), some("once", ".norm")

    def stages(*wanted: str) -> list[str]:
        lines.clear()
        build(str(source), out, stages=["conditioner", "denoiser"], lora=wanted, tell=lines.append)
        return [line.split(":")[0] for line in lines if "MB written" in line]

    assert stages(f"{step}:0.5", f"{once}:0.5") == ["conditioner", "denoiser"]
    assert stages(f"{step}:0.5", f"{once}:0.5") == []
    assert stages(f"{step}:0.6", f"{once}:0.5") == ["denoiser"]
    assert stages(f"{step}:0.6", f"{once}:0.1") == ["conditioner"]
    some("once", ".norm", seed=5)
    assert stages(f"{step}:0.6", f"{once}:0.1") == ["conditioner"]


def test_fp8_is_quantised_after_merging(checkpoint: Get, calibration: Path, tmp_path: Path) -> None:
    """The denoiser's E4M3 weights are those of the merged ones; the calibration is the plain model's."""
    source, lines = checkpoint("dev-like"), list[str]()
    update = loras.update(source, size=0.2)
    path = loras.save(tmp_path / "a.safetensors", loras.kohya(source, update))
    fp8 = Fp8(base="fp32", calibration=calibration)
    build(
        str(source),
        tmp_path / "b",
        precision="fp8",
        fp8=fp8,
        stages=["denoiser"],
        lora=[str(path)],
        tell=lines.append,
    )
    found = load_file(tmp_path / "b" / "denoiser.safetensors")
    wanted = loras.exact(source, update)
    codes = [name for name, each in found.items() if each.dtype == E4M3]
    assert codes and any("is not of the model with its LoRAs" in line for line in lines)
    for name in codes:
        weight = found[name].double() * found[f"{name}_scale"].double()[:, None]
        error = (weight - wanted[name]).abs().amax(1) / wanted[name].abs().amax(1)
        assert error.max() < 1 / 16
