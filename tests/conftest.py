from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("PYTEST_XDIST_WORKER"):
    # Processes that share the tests: PyTorch's threads of all of them on all CPUs would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

RANDOM = {
    "dev-like": {"heads": 2, "axes": (16, 16, 16), "depth": 1, "single": 2, "guidance": True, "seed": 1},
    "wide-like": {"heads": 4, "axes": (8, 12, 12), "depth": 1, "single": 2, "guidance": True, "seed": 11},
    "kontext-like": {
        "heads": 1,
        "axes": (8, 12, 12),
        "depth": 1,
        "single": 1,
        "guidance": True,
        "pipeline": "FluxKontextPipeline",
        "seed": 5,
    },
    "fill-like": {
        "heads": 1,
        "axes": (16, 8, 8),
        "depth": 1,
        "single": 1,
        "guidance": True,
        "in_channels": 384,
        "pipeline": "FluxFillPipeline",
        "seed": 3,
    },
    "canny-like": {
        "heads": 1,
        "axes": (16, 8, 8),
        "depth": 1,
        "single": 1,
        "guidance": True,
        "in_channels": 128,
        "pipeline": "FluxControlPipeline",
        "seed": 4,
    },
    "schnell-like": {"heads": 3, "axes": (8, 12, 12), "depth": 2, "single": 1, "guidance": False, "seed": 2},
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint folder by name: a trained one of examples/, or one of the random ones, made once."""
    from checkpoints import NANO, write_random

    root = tmp_path_factory.mktemp("checkpoints")
    made = {name: NANO.parent / name for name in ("flux-nano", "flux-nano-fill", "flux-nano-canny")}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = write_random(root / name, **RANDOM[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def bundle(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A bundle of such a checkpoint, built once per precision."""
    from flux_trt.exporter.build import build

    root = tmp_path_factory.mktemp("bundles")

    def get(name: str, precision: str = "fp32") -> Path:
        out = root / f"{name}-{precision}"
        if not out.exists():
            build(str(checkpoint(name)), out, precision=precision)
        return out

    return get


@pytest.fixture(scope="session")
def lora_bundle(
    checkpoint: Callable[[str], Path],
    bundle: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """dev-like with branches for LoRAs of rank 8; its plain stages are those of the plain bundle."""
    import shutil

    from flux_trt.exporter.build import build

    out = tmp_path_factory.mktemp("lora-bundle") / "dev-like"
    shutil.copytree(bundle("dev-like"), out)
    build(str(checkpoint("dev-like")), out, lora_rank=8)
    return out


@pytest.fixture(scope="session")
def flux2_parts() -> Callable[[str], dict[str, Any]]:
    """The parts of a small FLUX.2 in memory, by the name of its member, made once."""
    import flux2_checkpoints

    made: dict[str, dict[str, Any]] = {}

    def get(kind: str) -> dict[str, Any]:
        if kind not in made:
            made[kind] = flux2_checkpoints.parts(kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def flux2_folder(
    flux2_parts: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The same as diffusers folders."""
    import flux2_checkpoints

    root = tmp_path_factory.mktemp("flux2")

    def get(kind: str) -> Path:
        if not (root / kind).exists():
            flux2_checkpoints.pipeline(kind, flux2_parts(kind)).save_pretrained(root / kind)
        return root / kind

    return get


@pytest.fixture(scope="session")
def flux2_bundle(
    flux2_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Their bundles, built once per precision."""
    from flux_trt.exporter.build import build

    root = tmp_path_factory.mktemp("flux2-bundles")

    def get(kind: str, precision: str = "fp32") -> Path:
        out = root / f"{kind}-{precision}"
        if not out.exists():
            build(str(flux2_folder(kind)), out, precision=precision)
        return out

    return get


@pytest.fixture(scope="session")
def flux3_parts() -> Callable[[str], dict[str, Any]]:
    """The parts of a small FLUX.3 in memory, by the name of its member, made once."""
    import flux3_checkpoints

    made: dict[str, dict[str, Any]] = {}

    def get(kind: str) -> dict[str, Any]:
        if kind not in made:
            made[kind] = flux3_checkpoints.parts(kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def flux3_folder(
    flux3_parts: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The same as folders of modular pipelines."""
    import flux3_checkpoints

    root = tmp_path_factory.mktemp("flux3")

    def get(kind: str) -> Path:
        if not (root / kind).exists():
            flux3_checkpoints.save(kind, flux3_parts(kind), root / kind)
        return root / kind

    return get


@pytest.fixture(scope="session")
def flux3_bundle(
    flux3_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Their bundles, built once per precision."""
    from flux_trt.exporter.build import build

    root = tmp_path_factory.mktemp("flux3-bundles")

    def get(kind: str, precision: str = "fp32") -> Path:
        out = root / f"{kind}-{precision}"
        if not out.exists():
            build(str(flux3_folder(kind)), out, precision=precision)
        return out

    return get


def calibrated(source: Path, folder: Path, steps: int, size: tuple[int, int] = (64, 64)) -> Path:
    """A small calibration of a checkpoint, in a folder, named as it."""
    from flux_trt.exporter.quantise.ranges import calibrate_checkpoint

    out, prompts = folder / f"{source.stem}.json", folder / "prompts.txt"
    prompts.write_text("a red circle\na blue square on a white background\n")
    calibrate_checkpoint(str(source), out, prompts=prompts, size=size, steps=steps)
    return out


@pytest.fixture(scope="session")
def flux3_fp8(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Whole bundles of a small FLUX.3 whose denoiser, text encoder and text blocks are in fp8 on bf16."""
    import flux3_checkpoints

    from flux_trt.exporter.build import build
    from flux_trt.exporter.quantise.e4m3 import Fp8

    root = tmp_path_factory.mktemp("flux3-fp8")

    def get(kind: str) -> Path:
        if not (out := root / f"{kind}-bundle").exists():
            encoder = flux3_checkpoints.text_encoder(layers=18)
            source = flux3_checkpoints.write(kind, root / kind, text_encoder=encoder)
            fp8 = Fp8(base="bf16", calibration=calibrated(source, root, steps=2, size=(64, 48)))
            build(str(source), out, precision="fp8", fp8=fp8, stage_precisions={"context": "fp8"})
        return out

    return get


@pytest.fixture(scope="session")
def calibration(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of dev-like."""
    return calibrated(checkpoint("dev-like"), tmp_path_factory.mktemp("calibration"), steps=4)


@pytest.fixture(scope="session")
def fp8_bundle(
    checkpoint: Callable[[str], Path], calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """dev-like's T5 and denoiser in fp8, built once per base, with attention or without."""
    from flux_trt.exporter.build import build
    from flux_trt.exporter.quantise.e4m3 import Fp8

    root = tmp_path_factory.mktemp("fp8")

    def get(base: str, attention: bool = False) -> Path:
        out = root / f"{base}{'-attention' * attention}"
        if not out.exists():
            fp8 = Fp8(base=base, attention=attention, calibration=calibration)
            source = str(checkpoint("dev-like"))
            build(source, out, precision="fp8", fp8=fp8, stages=["t5", "denoiser"])
        return out

    return get


@pytest.fixture(scope="session")
def wide_calibration(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small calibration of wide-like."""
    return calibrated(checkpoint("wide-like"), tmp_path_factory.mktemp("wide-calibration"), steps=3)


@pytest.fixture(scope="session")
def quantised_denoiser(
    checkpoint: Callable[[str], Path], wide_calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """wide-like's denoiser, whose layers are wide enough for every format, built once per precision."""
    from flux_trt.exporter.build import build
    from flux_trt.exporter.quantise.e4m3 import Fp8

    root = tmp_path_factory.mktemp("quantised")

    def get(precision: str, base: str = "fp32") -> Path:
        out = root / f"{precision}-{base}"
        if not out.exists():
            fp8 = Fp8(base=base, calibration=wide_calibration)
            build(str(checkpoint("wide-like")), out, precision=precision, fp8=fp8, stages=["denoiser"])
        return out

    return get


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle of hand-made graphs whose pictures are known in closed form; do not change it."""
    import tiny_bundle

    return tiny_bundle.build(tmp_path_factory.mktemp("tiny") / "bundle")
