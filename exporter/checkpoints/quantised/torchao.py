"""torchao's float8 weights as diffusers and transformers save them in safetensors.

A weight lies as `<module>._weight_qdata` [out, in] and `<module>._weight_scale` ([1, 1], or [out, 1] a row),
and the header's metadata has under `<module>.weight` a JSON object whose `_type` is Float8Tensor.

Source: https://github.com/pytorch/ao, torchao/prototype/safetensors/safetensors_support.py
"""

from __future__ import annotations

from collections.abc import Mapping

from flux_trt.exporter.checkpoints.quantised.notes import parsed
from flux_trt.exporter.checkpoints.quantised.refused import broken, refusal
from flux_trt.exporter.checkpoints.quantised.scaled_fp8 import FP8, scaled
from flux_trt.exporter.checkpoints.tensorfile import Decoded, TensorInfo

CODES, SCALE, PLAIN = "._weight_qdata", "._weight_scale", "Float8Tensor"
EARLY = (":qdata", ":scale", ":_data")


def find(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> tuple[dict[str, Decoded], set[str]]:
    """The float8 weights, decoded, and the names of all that was used for it.

    Raises:
        CheckpointError: another of torchao's types, or codes without their scales.
    """
    made: dict[str, Decoded] = {}
    used: set[str] = set()
    for name, info in tensors.items():
        if name.endswith(EARLY):
            raise refusal(info.file, "saved by an early torchao", name)
        if name.endswith(SCALE) and name.removesuffix(SCALE) + CODES not in tensors:
            raise broken(info.file, f"{name} has no {CODES[1:]} beside it")
        if not name.endswith(CODES):
            continue
        module = name.removesuffix(CODES)
        weight, scale = f"{module}.weight", module + SCALE
        type_ = parsed(metadata.get(weight, "{}"), f"the note on {weight}", info.file).get("_type", PLAIN)
        if type_ != PLAIN or info.dtype not in FP8.values():
            raise refusal(info.file, f"torchao {str(type_)[:40]}", name)
        if scale not in tensors or weight in tensors:
            raise broken(info.file, f"{name} has no {SCALE[1:]} beside it, or a weight too")
        made[weight] = scaled(info, tensors[scale], info.dtype, weight)
        used |= {name, scale}
    return made, used
