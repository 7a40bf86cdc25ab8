"""Quantised tensors are read as the numbers that they stand for, in the forms in which they are published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import write_bfl
from quantised_tensors import E4M3, E5M2, MADE, REST, Tensors, layer, note, numbers, opened, quantised
from safetensors.torch import load_file, save_file

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.checkpoints.quantised.decode import decoded
from flux_trt.exporter.checkpoints.tensorfile import Decoded, read_header, read_metadata
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.runtime.errors import CheckpointError


def old(tensors: Tensors, marker: torch.Tensor) -> Tensors:
    """t5xxl_fp8_e4m3fn_scaled, flux1-dev-kontext_fp8_scaled: ComfyUI's convert_old_quants reads these."""
    return {
        "a.0.weight": tensors["a.0.weight"],
        "a.0.scale_weight": tensors["a.0.weight_scale"],
        "a.0.scale_input": torch.tensor(0.37),
        "scaled_fp8": marker,
    }


@pytest.mark.parametrize("spelling", ["old", "new", "metadata", "prefixed", "bare"])
@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("scale", [(), (1,), (5,), (5, 1)])
@pytest.mark.parametrize("shape", [(5, 7), (5,), (5, 2, 3, 3)])
def test_scaled_fp8(
    tmp_path: Path,
    spelling: str,
    container: bool,
    dtype: torch.dtype,
    scale: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    tensors, wanted = layer(dtype, len(scale) > 0 and scale[0] > 1, shape)
    tensors["a.0.weight_scale"] = tensors["a.0.weight_scale"].reshape(scale)
    metadata, said = None, {"format": str(dtype).removeprefix("torch.")}
    if spelling == "old":
        tensors = old(tensors, torch.zeros(2, dtype=dtype))
    elif spelling == "new":
        tensors["a.0.comfy_quant"] = note({**said, "full_precision_matrix_mult": True})
    elif spelling != "bare":
        name = "model.diffusion_model.a.0" if spelling == "prefixed" else "a.0"
        layers = {name: said, "text_encoders.t5xxl.transformer.b": {"format": "float8_e4m3fn"}}
        metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    if container:
        tensors["a.0.weight"] = tensors["a.0.weight"].view(torch.uint8)
    if container and spelling == "bare":
        with pytest.raises(CheckpointError, match="uint8 without a word on the format"):
            opened(tmp_path / "a.safetensors", tensors, metadata)
        return
    found = opened(tmp_path / "a.safetensors", tensors | REST, metadata)
    plain = read_header(tmp_path / "a.safetensors")
    assert set(found) == {"a.0.weight", *REST}
    assert {name: found[name] for name in REST} == {name: plain[name] for name in REST}
    weight = found["a.0.weight"]
    assert isinstance(weight, Decoded)
    assert (weight.format, weight.shape, weight.dtype) == ("scaled fp8", shape, torch.float32)
    assert torch.equal(weight.read(), wanted)
    assert (weight.input_scale is not None) == (spelling == "old")
    if weight.input_scale:
        assert weight.input_scale.read() == torch.tensor(0.37)


def test_float32_marks_e4m3_and_names_may_have_prefixes(tmp_path: Path) -> None:
    tensors, wanted = layer()
    tensors = old(tensors, torch.zeros(0))
    tensors["a.0.weight"] = tensors["a.0.weight"].view(torch.uint8)
    named = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    found = opened(tmp_path / "a.safetensors", {**named, "vae.x.weight": torch.ones(2)})
    assert set(found) == {"model.diffusion_model.a.0.weight", "vae.x.weight"}
    assert torch.equal(found["model.diffusion_model.a.0.weight"].read(), wanted)


def test_the_old_spelling_also_scales_wide_weights(tmp_path: Path) -> None:
    """ComfyUI multiplies by `scale_weight` whatever the weight's type is."""
    weight, scale = torch.randn(5, 7).bfloat16(), torch.tensor(0.3)
    tensors = {"a.weight": weight, "a.scale_weight": scale, "scaled_fp8": torch.zeros(2).to(E4M3)}
    found = opened(tmp_path / "a.safetensors", tensors)
    assert torch.equal(found["a.weight"].read(), weight.float() * scale)


@pytest.mark.parametrize("method", ["modelopt", "compressed-tensors", "bfl", "fbgemm_fp8"])
def test_fp8_folders(tmp_path: Path, method: str) -> None:
    """Scales as ModelOpt (one), compressed-tensors (bf16, a row each) and BFL's fp8r ([out]) write them."""
    tensors, wanted = layer(rows=method != "modelopt")
    kind = {"modelopt": {"quant_algo": "FP8"}, "compressed-tensors": {"format": "float-quantized"}}.get(
        method, {}
    )
    if method == "compressed-tensors":
        tensors["a.0.weight_scale"] = tensors["a.0.weight_scale"].bfloat16()
        wanted = numbers(tensors["a.0.weight"], tensors["a.0.weight_scale"], E4M3)
    config = {"quantization_config": {"quant_method": method, **kind}}
    found = opened(tmp_path / "a.safetensors", tensors, config=config)
    assert torch.equal(found["a.0.weight"].read(), wanted)


@pytest.mark.parametrize("package", ["bitsandbytes", "torchao"])
def test_numbers_are_those_of_the_package(package: str) -> None:
    path = MADE / f"{package}.safetensors"
    found = decoded(
        read_header(path), read_metadata(path), {"quantization_config": {"quant_method": package}}
    )
    wanted = load_file(MADE / f"{package}.numbers.safetensors")
    assert {name for name, info in found.items() if isinstance(info, Decoded)} == set(wanted)
    for name, tail in wanted.items():
        value = found[name].read()
        assert tuple(value.shape) == found[name].shape
        assert torch.equal(value.to(tail.dtype).flatten()[-300:], tail)
    if package == "bitsandbytes":
        assert {info.format for info in found.values()} == {"NF4", "FP4", "bitsandbytes int8"}
        assert found["nf4_nested.weight"].shape == (131, 129)
    else:
        assert set(found) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_codes_may_lie_in_another_dtype(tmp_path: Path) -> None:
    """`bnb_4bit_quant_storage` makes bf16 of the bytes, for FSDP."""
    made = load_file(MADE / "bitsandbytes.safetensors")
    tensors = {name: tensor for name, tensor in made.items() if name.startswith("nf4.")}
    plain = opened(tmp_path / "a.safetensors", tensors)["nf4.weight"].read()
    tensors["nf4.weight"] = tensors["nf4.weight"].flatten().view(torch.bfloat16)[:, None]
    assert torch.equal(opened(tmp_path / "b.safetensors", tensors)["nf4.weight"].read(), plain)


def test_a_file_that_is_packed_throughout(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """As Forge's flux1-dev-bnb-nf4: every matrix, also those that tell the model's size, behind a prefix."""
    path = write_bfl(checkpoint("dev-like"), tmp_path / "nf4.safetensors", "model.diffusion_model.")
    levels = load_file(MADE / "bitsandbytes.safetensors")["nf4.weight.quant_map"]
    tensors, wanted = {}, {}
    for name, tensor in load_file(path).items():
        if tensor.ndim != 2:
            tensors[name] = tensor
            continue
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": list(tensor.shape)}
        codes = torch.randint(0, 16, tensor.shape).byte()
        absmax = torch.rand(-(-tensor.numel() // 64))
        tensors[name] = (codes.flatten()[::2] << 4 | codes.flatten()[1::2])[:, None]
        tensors |= {f"{name}.absmax": absmax, f"{name}.quant_map": levels.clone()}
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = note(state)
        scale = absmax.repeat_interleave(64)[: tensor.numel()].reshape(tensor.shape)
        wanted[name.removeprefix("model.diffusion_model.")] = levels[codes.long()] * scale
    save_file(tensors, path)
    stages = make_stages(recognise(open_checkpoint(str(path))), "fp32", ["conditioner", "denoiser"])
    for stage in stages:
        for recipe in stage.recipes.values():
            if recipe.names[0] in wanted:
                assert torch.equal(recipe.load(stage.tensors), wanted.pop(recipe.names[0]))
    assert wanted == {}


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("sub", ["text_encoder", "text_encoder_2", "transformer", "vae"])
def test_every_part_of_a_checkpoint(
    checkpoint: Callable[[str], Path], tmp_path: Path, sub: str, rows: bool
) -> None:
    """What the recipes load is what they would load of the numbers, and near to what was quantised."""
    folders = {
        name: shutil.copytree(checkpoint("dev-like"), tmp_path / name) for name in ("codes", "numbers")
    }
    (path,) = (folders["codes"] / sub).glob("*.safetensors")
    tensors = load_file(path)
    codes: Tensors = {"scaled_fp8": torch.zeros(0, dtype=E4M3)}
    for name, tensor in list(tensors.items()):
        if tensor.ndim >= 2 and name.endswith(".weight"):
            codes[name], codes[name.removesuffix("weight") + "scale_weight"] = quantised(tensor, E4M3, rows)
            tensors[name] = numbers(codes[name], codes[name.removesuffix("weight") + "scale_weight"], E4M3)
    save_file({**tensors, **codes}, path)
    save_file(tensors, folders["numbers"] / sub / path.name)
    before = make_stages(recognise(open_checkpoint(str(checkpoint("dev-like")))), "fp32")
    wanted = make_stages(recognise(open_checkpoint(str(folders["numbers"]))), "fp32")
    found = make_stages(recognise(open_checkpoint(str(folders["codes"]))), "fp32")
    assert len(found) == 6
    for first, second, third in zip(before, wanted, found, strict=True):
        for name, recipe in third.recipes.items():
            if any(key not in third.tensors for key in recipe.names):
                continue
            value = recipe.load(third.tensors)
            assert torch.equal(value.float(), second.recipes[name].load(second.tensors).float())
            exact = first.recipes[name].load(first.tensors).float()
            bound = torch.maximum(exact.abs() / 16, exact.abs().max() / 448 / 512)
            assert bool(((value - exact).abs() <= bound).all())
