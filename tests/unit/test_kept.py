"""E4M3 codes that a file has already stay as they are in an fp8 bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quantised_tensors import quantised
from safetensors.torch import save_file

from flux_trt.exporter.checkpoints.quantised.scaled_fp8 import scaled
from flux_trt.exporter.checkpoints.recipe import Concat, Key, SwapHalves
from flux_trt.exporter.checkpoints.tensorfile import AnyTensor, read_header
from flux_trt.exporter.quantise.e4m3 import E4M3, quantize_weight
from flux_trt.exporter.quantise.kept import kept

BASES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(96, 64) * size for name, size in {"q": 0.03, "k": 0.05, "v": 0.2}.items()}


def written(weights: dict[str, torch.Tensor], path: Path, rows: bool) -> dict[str, AnyTensor]:
    """Scaled fp8, read back from a file."""
    codes = {name: quantised(weight, E4M3, rows) for name, weight in weights.items()}
    held = {name: code for name, (code, _) in codes.items()}
    save_file(held | {f"{name}_scale": scale for name, (_, scale) in codes.items()}, path)
    found = read_header(path)
    return {name: scaled(found[name], found[f"{name}_scale"], E4M3, name) for name in weights}


@pytest.mark.parametrize("dtype", BASES)
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("recipe", [Key("k"), Concat("q", "k", "v")])
def test_codes_and_scales_are_the_files(weights, recipe, rows, dtype, tmp_path):
    tensors = written(weights, tmp_path / "w.safetensors", rows)
    codes, scale = kept(recipe, tensors, dtype, per_channel=True)
    told = recipe.load(tensors)
    assert (codes.dtype, scale.dtype, scale.shape) == (E4M3, dtype, told.shape[:1])
    exact = codes.float() * scale.float()[:, None]
    assert float((exact - told).abs().max() / told.abs().max()) <= (2**-8 if dtype != torch.float32 else 1e-6)
    again, other = quantize_weight(told, dtype, per_channel=True)
    lost = (again.float() * other.float()[:, None] - told).norm()
    if not rows:
        assert (exact - told).norm() < 0.25 * lost, "a second rounding would be no worse"


def test_one_scale_stays_one(weights, tmp_path):
    tensors = written(weights, tmp_path / "w.safetensors", rows=False)
    codes, scale = kept(Key("q"), tensors, torch.bfloat16, per_channel=False)
    assert scale.shape == ()
    assert torch.equal(codes.view(torch.uint8), tensors["q"].parts[0].read().view(torch.uint8))


def test_codes_without_a_scale_have_the_scale_one(weights, tmp_path):
    save_file({"q": weights["q"].to(E4M3)}, tmp_path / "w.safetensors")
    codes, scale = kept(Key("q"), read_header(tmp_path / "w.safetensors"), torch.bfloat16, per_channel=True)
    assert torch.equal(codes.float(), weights["q"].to(E4M3).float())
    assert (scale == 1).all()


def test_what_cannot_be_kept_is_none(weights, tmp_path):
    one, rows = tmp_path / "one.safetensors", tmp_path / "rows.safetensors"
    tensors = written(weights, one, rows=False)
    assert kept(SwapHalves("q"), tensors, torch.bfloat16, per_channel=True) is None, "rows in another order"
    assert kept(Concat("q", "k"), tensors, torch.bfloat16, per_channel=False) is None, "two scales in one"
    by_row = written(weights, rows, rows=True)
    assert kept(Key("q"), by_row, torch.bfloat16, per_channel=False) is None, "a scale a row in one"
    tiny = written({"q": weights["q"] * 1e-4}, tmp_path / "tiny.safetensors", rows=False)
    assert kept(Key("q"), tiny, torch.float16, per_channel=True) is None, "a scale that float16 lacks"
    assert kept(Key("q"), tiny, torch.bfloat16, per_channel=True) is not None
    save_file(weights, tmp_path / "plain.safetensors")
    plain = read_header(tmp_path / "plain.safetensors")
    assert kept(Key("q"), plain, torch.bfloat16, per_channel=True) is None
    assert kept(Concat("q", "k"), {**tensors, "k": plain["k"]}, torch.bfloat16, per_channel=True) is None
