"""Formats that are recognised and not decoded, and how a fault in a quantised file is told.

Sources: nunchaku and deepcompressor (`wscales`), AutoAWQ and AutoGPTQ (`qzeros`, `g_idx`), optimum-quanto
(`_data`, `_scale`), NVIDIA ModelOpt (`weight_scale_2`, `pre_quant_scale`), compressed-tensors
(`weight_packed`), ComfyUI's comfy/quant_ops.py (the values of "format"), MLX (`scales` with `biases`), and
`quant_method` as diffusers and transformers write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flux_trt.exporter.checkpoints.tensorfile import TensorInfo
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.stored import AGAIN

NUNCHAKU, BLOCKS = "Nunchaku SVDQuant", "fp8 with a scale per block"
INSTEAD = "give the bf16 one that it was made from, or one in scaled fp8, NF4 or GGUF"

ENDS: Mapping[str, str] = {
    "wscales": NUNCHAKU,
    "wzeros": NUNCHAKU,
    "smooth_factor": NUNCHAKU,
    "g_idx": "GPTQ",
    "qzeros": "AWQ",
    "qweight": "packed in 4 bits (AWQ, GPTQ or SVDQuant)",
    "weight_zeros": "AWQ",
    "_data": "quanto",
    "_scale": "quanto",
    "_shift": "quanto",
    "weight_scale_2": "NVFP4",
    "pre_quant_scale": "NVFP4 or AWQ of ModelOpt",
    "_amax": "ModelOpt's own state",
    "weight_scale_inv": BLOCKS,
    "weight_packed": "compressed-tensors, packed",
    "weight_s_rel": "W4A8",
    "biases": "MLX",
    "zero_point": "SDNQ",
    "weight_zero_point": "compressed-tensors with zero points",
}
"""The last word of a tensor's name -> the format that only it has; the first one that is found counts."""

FORMATS: Mapping[str, str] = {
    "nvfp4": "NVFP4",
    "mxfp8": "MXFP8",
    "int8_tensorwise": "ComfyUI int8",
    "asym_w4a8_int8": "W4A8",
    "awq_w4a16": "AWQ",
    "svdquant_w4a4": NUNCHAKU,
}
"""ComfyUI's "format" -> what it is called; whatever is rotated is ConvRot."""

METHODS: Mapping[str, str] = {
    "quanto": "quanto",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "nunchaku": NUNCHAKU,
    "nunchaku_lite": NUNCHAKU,
    "svdquant": NUNCHAKU,
    "fp8": BLOCKS,
    "sdnq": "SDNQ",
    "auto-round": "AutoRound",
    "mxfp4": "MXFP4",
}
"""`quant_method` -> what it is called; of those not named here see `DECODED`."""

DECODED = ("bitsandbytes", "torchao", "compressed-tensors", "modelopt", "bfl", "fbgemm_fp8")
KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "compressed-tensors": (("format",), ("float-quantized", "naive-quantized", "dense")),
    "modelopt": (("quant_algo", "quant_type"), ("FP8",)),
}
"""`quant_method` -> where its config says which kind, and the kinds that are decoded."""


def broken(file: Path, what: str) -> CheckpointError:
    """That a file contradicts itself."""
    return CheckpointError(f"{file}: {what}; {AGAIN}")


def refusal(file: Path, name: str, mark: str) -> CheckpointError:
    """That a file is in a format that is not decoded, and by what that was seen."""
    return CheckpointError(f"{file} is {name}, which is not decoded ({mark}); {INSTEAD}")


def refuse(
    tensors: Mapping[str, TensorInfo], notes: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]
) -> None:
    """See whether anything is in a format that is not decoded.

    Args:
        tensors: of a part or of a file.
        notes: what the file says of its layers.
        config: of the part.

    Raises:
        CheckpointError: it is; the format's name.
    """
    if not tensors:
        return
    file = next(iter(tensors.values())).file
    ends: dict[str, str] = {}
    for name in tensors:
        ends.setdefault(name.rpartition(".")[2], name)
    for end, format in ENDS.items():
        if end in ends:
            raise refusal(tensors[ends[end]].file, format, ends[end])
    for layer, note in notes.items():
        if (other := _other_format(note)) is not None:
            raise refusal(file, other, f"the format of {layer}")
    if (method := _other_method(file, config.get("quantization_config"))) is not None:
        raise refusal(file, method, "quantization_config")


def _other_format(note: Mapping[str, Any]) -> str | None:
    """What a layer is called whose note does not say plain fp8."""
    said, params = note.get("format"), note.get("params")
    params = params if isinstance(params, dict) else {}
    if note.get("convrot") or params.get("convrot") or "convrot" in str(said):
        return "ConvRot"
    if said in ("float8_e4m3fn", "float8_e5m2"):
        return None
    return FORMATS.get(str(said), f"quantised in a format called {str(said)[:40]!r}")


def _other_method(file: Path, found: object) -> str | None:
    """What a part is called whose config has a method that is not decoded."""
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise broken(file, "quantization_config of its config.json is no JSON object")
    method = str(found.get("quant_method"))
    if method not in DECODED:
        return METHODS.get(method, f"quantised by a method called {method[:40]!r}")
    places, kinds = KINDS.get(method, ((), ()))
    said = next((found[place] for place in places if found.get(place) is not None), None)
    return None if said is None or said in kinds else f"{method} {str(said)[:40]}"
