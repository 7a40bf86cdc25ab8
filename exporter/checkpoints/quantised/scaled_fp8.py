"""Scaled fp8: a weight [out, ...] of fp8 codes is codes * scale, per tensor ([] or [1]) or per row.

* ComfyUI's old spelling: `<layer>.scale_weight`, `<layer>.scale_input`, and a marker `scaled_fp8` whose dtype
  is the fp8 type (float32 means E4M3); two elements in it ask for products in full precision.
* The new one: `<layer>.weight_scale`, `<layer>.input_scale`, and the notes of `notes`. Codes may lie in
  uint8. compressed-tensors, ModelOpt, fbgemm and BFL's fp8r use the same names without notes.

Sources: https://github.com/Comfy-Org/ComfyUI/blob/master/QUANTIZATION.md, comfy/utils.py
(convert_old_quants) and comfy/ops.py there; diffusers' quantizers/bfl.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial

import torch

from flux_trt.exporter.checkpoints.quantised.notes import MARK, Notes
from flux_trt.exporter.checkpoints.quantised.refused import BLOCKS, broken, refusal
from flux_trt.exporter.checkpoints.tensorfile import Decoded, TensorInfo

NAME = "scaled fp8"
OLD_MARK = "scaled_fp8"
OLD, WEIGHTS, INPUTS = ".scale_weight", (".scale_weight", ".weight_scale"), (".scale_input", ".input_scale")
FP8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
BLOCK = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""A block's number in a name."""
WIDE = (torch.float32, torch.float16, torch.bfloat16)

Tensors = Mapping[str, TensorInfo]


def find(tensors: Tensors, notes: Notes) -> tuple[dict[str, Decoded], set[str]]:
    """The weights with a scale, decoded, and the names of all that was used for it.

    Raises:
        CheckpointError: codes and scales that do not fit, or one without the other.
    """
    scales, inputs = _by_layer(tensors, WEIGHTS), _by_layer(tensors, INPUTS)
    markers = [name for name in tensors if name == OLD_MARK or name.endswith(f".{OLD_MARK}")]
    made = {}
    for layer, scale in scales.items():
        weight = f"{layer}.weight"
        if weight not in tensors:
            raise broken(tensors[scale].file, f"{scale} has no {weight}")
        dtype = _type_of_codes(tensors, weight, scale, markers, notes)
        activation = tensors[inputs[layer]] if layer in inputs else None
        made[weight] = scaled(tensors[weight], tensors[scale], dtype, weight, activation)
    _refuse_lost(tensors, scales, inputs, markers, notes)
    used = {name for name in tensors if name.endswith(MARK)}
    return made, {*made, *scales.values(), *inputs.values(), *markers, *used}


def scaled(
    codes: TensorInfo, scale: TensorInfo, dtype: torch.dtype, name: str, activation: TensorInfo | None = None
) -> Decoded:
    """Codes [out, ...], whose bits are `dtype`, times a scale [] or [1], or one a row, [out] or [out, 1].

    Raises:
        CheckpointError: a scale of another shape, or one that is no finite number.
    """
    if scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
        raise refusal(scale.file, "MXFP8", f"the scales of {name}")
    if scale.dtype in FP8.values():
        raise refusal(scale.file, "NVFP4", f"the scales of {name}")
    if scale.dtype not in WIDE:
        raise broken(scale.file, f"the scale of {name} is {scale.dtype}")
    count = math.prod(scale.shape)
    if count != 1 and (not codes.shape or scale.shape not in (codes.shape[:1], (codes.shape[0], 1))):
        if len(scale.shape) == len(codes.shape) == 2:
            raise refusal(scale.file, BLOCKS, f"the scales of {name}")
        raise broken(scale.file, f"the scale of {name} {list(codes.shape)} is {list(scale.shape)}")
    if not scale.read().isfinite().all():
        raise broken(scale.file, f"the scale of {name} is not finite")
    return Decoded(
        NAME,
        codes.shape,
        (codes, scale),
        partial(_scale, dtype),
        coded=_coded if dtype == torch.float8_e4m3fn else None,
        input_scale=activation,
    )


def _coded(codes: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return codes.view(torch.float8_e4m3fn), scale.float().reshape(-1 if scale.numel() > 1 else ())


def _scale(dtype: torch.dtype, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows = (-1, *[1] * (codes.ndim - 1)) if scale.numel() > 1 else ()
    return codes.view(dtype).float().mul_(scale.float().reshape(rows))


def _by_layer(tensors: Tensors, ends: tuple[str, ...]) -> dict[str, str]:
    """Layer -> the name of its one tensor that ends so."""
    found: dict[str, str] = {}
    for name in tensors:
        if name.endswith(ends):
            layer = name.rpartition(".")[0]
            if layer in found:
                raise broken(tensors[name].file, f"{layer} has both {found[layer]} and {name}")
            found[layer] = name
    return found


def _type_of_codes(
    tensors: Tensors, weight: str, scale: str, markers: list[str], notes: Notes
) -> torch.dtype:
    """What the bits of a weight are."""
    info, said = tensors[weight], notes.get(weight.removesuffix(".weight"), {}).get("format")
    if info.dtype in FP8.values():
        if said is not None and FP8[said] != info.dtype:
            raise broken(info.file, f"{weight} is said to be {said} and is {info.dtype}")
        return info.dtype
    if info.dtype == torch.uint8:
        if said is not None:
            return FP8[said]
        for name in markers:
            if weight.startswith(name.removesuffix(OLD_MARK)):
                return tensors[name].dtype if tensors[name].dtype in FP8.values() else torch.float8_e4m3fn
        raise refusal(info.file, "quantised in uint8 without a word on the format", weight)
    if info.dtype in WIDE and said is None and scale.endswith(OLD):
        return info.dtype
    if info.dtype == torch.int8:
        raise refusal(info.file, "int8 with scales", weight)
    raise broken(info.file, f"{weight} is {info.dtype} and has an fp8 scale")


def _refuse_lost(
    tensors: Tensors, scales: dict[str, str], inputs: dict[str, str], markers: list[str], notes: Notes
) -> None:
    """See that no scale is missing that a marker, a note, an input's scale or like layers announce."""
    for name in markers:
        if not any(layer.startswith(name.removesuffix(OLD_MARK)) for layer in scales):
            raise broken(tensors[name].file, f"{name} announces scales and there are none")
    for layer in [*notes, *inputs]:
        if layer not in scales:
            info = tensors[inputs.get(layer, f"{layer}.weight")]
            raise broken(info.file, f"{layer}.weight has no scale")
    alike = {BLOCK.sub("*", layer, count=1) for layer in scales}
    for name, info in tensors.items():
        layer = name.removesuffix(".weight")
        plain = info.dtype in FP8.values() and layer not in scales
        if plain and BLOCK.sub("*", layer, count=1) in alike:
            raise broken(info.file, f"{name} has no scale and its like in other blocks have one")
