"""Quantised denoisers build for the GPUs that they are for, and TensorRT-RTX multiplies as they say."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from flux_trt.exporter.cli import main
from flux_trt.exporter.engines.count import count
from flux_trt.runtime.errors import BuildError

LAYERS = 8 + 2 * 2

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)


@rtx
@pytest.mark.parametrize(
    ("precision", "base", "sm", "into", "stored"),
    [
        ("int8", "fp16", "7.5", "Int8", "Int8"),
        ("int8", "bf16", "8.6", "Int8", "Int8"),
        ("w8a16", "fp16", "7.5", "Half", "Int8"),
        ("w4a16", "fp16", "8.0", "Half", "Int4"),
        ("nvfp4", "bf16", "12.0", "FP4", "FP4"),
    ],
)
def test_every_layer_is_multiplied_so(
    quantised_denoiser: Callable[..., Path], precision: str, base: str, sm: str, into: str, stored: str
) -> None:
    """What comes into the products, and how the weights lie that they read: none is unpacked before."""
    found = dict(count(quantised_denoiser(precision, base), ["denoiser"], sm, (64, 64)))["denoiser"]
    kinds = {name.removesuffix("E2M1"): number for name, number in found.products.items()}
    weights = {name.removesuffix("E2M1"): number for name, number in found.weights.items()}
    assert weights[stored] == LAYERS, found
    assert kinds[into] == LAYERS + (into == "Half"), found


@rtx
@pytest.mark.parametrize(
    ("precision", "base", "sm", "said"),
    [
        ("w4a16", "fp16", "7.5", "w4a16 needs sm 8.0 or newer, not 7.5; use --precision w8a16 --base fp16"),
        ("int8", "bf16", "7.5", "int8 with bf16 around it needs sm 8.0 or newer, not 7.5; use --base fp16"),
        ("nvfp4", "bf16", "8.9", "nvfp4 needs sm 10.0 or newer, not 8.9; use --precision fp8, int8 or w4a16"),
    ],
)
def test_other_gpus_are_refused_before_any_work(
    quantised_denoiser: Callable[..., Path], tmp_path: Path, precision: str, base: str, sm: str, said: str
) -> None:
    with pytest.raises(BuildError, match=said):
        dict(count(quantised_denoiser(precision, base), ["denoiser"], sm, (64, 64)))
    command = [
        "build",
        "examples/flux-nano",
        "--out",
        str(tmp_path / "b"),
        "--precision",
        precision,
        "--base",
        base,
    ]
    done = CliRunner().invoke(main, [*command, "--backend", "tensorrt-rtx", "--sm", sm])
    assert done.exit_code == 1
    assert said in done.output
    assert list(tmp_path.iterdir()) == []
