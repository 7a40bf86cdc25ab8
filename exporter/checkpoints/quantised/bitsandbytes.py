"""bitsandbytes: int8 with a scale per row, and NF4 and FP4 in blocks, whose scales may be quantised again.

* int8: `<layer>.weight` [out, in], `<layer>.SCB` [out]; the weight is codes * SCB / 127. A `weight_format`
  of 0 says that the rows lie as they are.
* 4 bits: `W` [n/2, 1] holds two codes a byte, the first in the high nibble, beside `W.absmax` [blocks],
  `W.quant_map` [16] and `W.quant_state.bitsandbytes__nf4` (or fp4), JSON with the shape; the weight is
  quant_map[code] * absmax of its block. Nested, absmax is uint8: nested_quant_map [256] of it, times
  `nested_absmax` of its own block, plus an offset.

Sources: bitsandbytes' functional.py (QuantState.as_dict, int8_vectorwise_dequant),
https://huggingface.co/docs/bitsandbytes; diffusers' quantizers/bitsandbytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flux_trt.exporter.checkpoints.quantised.notes import read_note
from flux_trt.exporter.checkpoints.quantised.refused import broken, refusal
from flux_trt.exporter.checkpoints.tensorfile import Decoded, TensorInfo

STATE = ".quant_state.bitsandbytes__"
ROWS, FORMAT = ".SCB", ".weight_format"
NAMES = {"nf4": "NF4", "fp4": "FP4"}
FLAT, NESTED = (".absmax", ".quant_map"), (".nested_absmax", ".nested_quant_map")

Tensors = Mapping[str, TensorInfo]


def find(tensors: Tensors) -> tuple[dict[str, Decoded], set[str]]:
    """The weights in int8 or 4 bits, decoded, and the names of all that was used for it.

    Raises:
        CheckpointError: codes and scales that do not fit, or one without the other.
    """
    made: dict[str, Decoded] = {}
    used: set[str] = set()
    for name, info in tensors.items():
        if name.endswith(ROWS):
            weight = name.removesuffix(ROWS) + ".weight"
            made[weight] = _eight_bits(tensors, weight, info)
            used |= {weight, name}
        elif name.endswith(FORMAT):
            if math.prod(info.shape) != 1 or info.read().item() != 0:
                raise refusal(info.file, "bitsandbytes int8 in a GPU's own order", name)
            used.add(name)
        elif STATE in name:
            weight, _, kind = name.rpartition(STATE)
            made[weight] = _four_bits(tensors, weight, kind, read_note(info, name))
            used |= {weight, name, *(weight + end for end in FLAT + NESTED if weight + end in tensors)}
    for name in tensors.keys() - used:
        if name.endswith(FLAT + NESTED):
            raise broken(tensors[name].file, f"{name} has no {STATE[1:]}nf4 or fp4 beside it")
    return made, used


def _eight_bits(tensors: Tensors, name: str, rows: TensorInfo) -> Decoded:
    codes = tensors.get(name)
    if codes is None or codes.dtype != torch.int8 or len(codes.shape) != 2:
        raise broken(rows.file, f"{name} is no int8 matrix and has scales")
    if rows.shape not in (codes.shape[:1], (codes.shape[0], 1)) or not rows.dtype.is_floating_point:
        raise broken(rows.file, f"the scales of {name} {list(codes.shape)} are {list(rows.shape)}")
    if not rows.read().isfinite().all():
        raise broken(rows.file, f"the scales of {name} are not all finite")
    return Decoded("bitsandbytes int8", codes.shape, (codes, rows), _rows_of_int8)


def _rows_of_int8(codes: Tensor, rows: Tensor) -> Tensor:
    return codes.float().mul_(rows.float().reshape(-1, 1)).mul_(1 / 127)


def _four_bits(tensors: Tensors, name: str, kind: str, state: Mapping[str, Any]) -> Decoded:
    nested = name + NESTED[0] in tensors
    names = [name, *(name + end for end in FLAT + (NESTED if nested else ()))]
    file = tensors[f"{name}{STATE}{kind}"].file
    if absent := [each for each in names if each not in tensors]:
        raise broken(file, f"{absent[0]} is missing")
    if kind not in NAMES or state.get("quant_type") != kind:
        raise refusal(file, f"bitsandbytes {str(state.get('quant_type'))[:40]!r}", name)
    wanted = {"shape": None, "blocksize": None, "nested_blocksize": 1, "nested_offset": 0.0}
    shape, block, inner, offset = (state.get(key, other) for key, other in wanted.items())
    if not (isinstance(shape, list) and all(type(n) is int and n > 0 for n in (*shape, block, inner))):
        raise broken(file, f"the quant_state of {name} has no shape or no block size")
    if not (isinstance(offset, float) and math.isfinite(offset)):
        raise broken(file, f"the quant_state of {name} has no finite offset")
    count = math.prod(shape)
    blocks = -(-count // block)
    codes, absmax, levels, *rest = parts = tuple(tensors[each] for each in names)
    fits = codes.nbytes == -(-count // 2) and absmax.nbytes == blocks * absmax.dtype.itemsize
    fits = fits and levels.nbytes == 16 * 4 and absmax.dtype == (torch.uint8 if nested else torch.float32)
    if nested:
        fits = fits and (rest[0].nbytes, rest[1].nbytes) == (-(-blocks // inner) * 4, 256 * 4)
    if not fits or any(part.dtype != torch.float32 for part in (levels, *rest)):
        raise broken(file, f"the scales of {name} do not fit its shape {shape}")
    if not all(part.read().isfinite().all() for part in (levels, *rest)):
        raise broken(file, f"the levels of {name} are not all finite")
    make = partial(_levels_of_nibbles, count, block, inner, float(offset))
    return Decoded(NAMES[kind], tuple(shape), parts, make)


def _levels_of_nibbles(
    count: int,
    block: int,
    inner: int,
    offset: float,
    codes: Tensor,
    absmax: Tensor,
    levels: Tensor,
    *nested: Tensor,
) -> Tensor:
    """[n/2] bytes -> [n] numbers; a byte stands for two levels, so that no index has the weight's size."""
    absmax = absmax.flatten()
    if nested:
        scales, steps = (part.flatten() for part in nested)
        absmax = steps[absmax.int()] * scales.repeat_interleave(inner)[: absmax.numel()] + offset
    levels = levels.flatten()
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)
    found = pairs.index_select(0, codes.flatten().view(torch.uint8).int()).flatten()[:count]
    whole = count - count % block
    found[:whole].view(-1, block).mul_(absmax[: whole // block, None])
    found[whole:].mul_(absmax[-1])
    return found
