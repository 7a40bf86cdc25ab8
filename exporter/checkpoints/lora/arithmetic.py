"""What a term makes of a weight, in float32.

* LoRA: W + s B A. LoHa: W + s (w1_a w1_b) * (w2_a w2_b). LoKr: W + s kron(w1, w2).
* DoRA: m (W + s B A) / |W + s B A|, norms of rows where m has one number a row, of columns where a column.
* A strength other than 1 goes that share of the way from W; for DoRA, too, as ComfyUI does.

Sources: PEFT tuners/lora/dora.py, LyCORIS modules/locon.py, loha.py, lokr.py, kohya networks/lora_flux.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from flux_trt.runtime.lora.term import Term

Values = Mapping[str, Tensor]


def changed(weight: Tensor, term: Term, values: Values, strength: float) -> Tensor:
    """The parameter with a term in it: a new tensor of the same shape.

    Args:
        weight: float32, any parameter's whole.
        term: what is done.
        values: its tensors, by role, in any floating type.
        strength: how much of it is done.
    """
    first, last = term.place.rows or (0, weight.shape[0])
    own = weight[first:last]
    if term.place.swapped:
        own = _swapped(own)
    new = _changed(own, term, {role: value.float() for role, value in values.items()}, strength)
    if term.place.swapped:
        new = _swapped(new)
    if term.place.rows is None:
        return new
    return torch.cat([weight[:first], new, weight[last:]])


def _changed(own: Tensor, term: Term, values: Values, strength: float) -> Tensor:
    if term.kind == "set":
        return values["set"].reshape(own.shape)
    delta = term.scale * _delta(term, values, own)
    if "magnitude" not in values:
        return own + strength * delta
    whole, magnitude = own + delta, values["magnitude"]
    rows = magnitude.shape[0] == own.shape[0]
    length = torch.linalg.vector_norm(whole, dim=1 if rows else 0, keepdim=True)
    directed = magnitude.reshape(length.shape) * (whole / length)
    return directed if strength == 1 else own + strength * (directed - own)


def _delta(term: Term, values: Values, own: Tensor) -> Tensor:
    if term.kind == "LoRA":
        found = values["up"].flatten(1) @ values["down"].flatten(1)
        return F.pad(found, (0, own.shape[1] - found.shape[1]))  # a LoRA of a model with fewer channels
    if term.kind == "LoHa":
        one, other = values["hada_w1_a"] @ values["hada_w1_b"], values["hada_w2_a"] @ values["hada_w2_b"]
        return one * other
    if term.kind == "LoKr":
        return torch.kron(_factor(values, "lokr_w1"), _factor(values, "lokr_w2"))
    return values["diff"].reshape(own.shape)


def _factor(values: Values, name: str) -> Tensor:
    return values[name] if name in values else values[f"{name}_a"] @ values[f"{name}_b"]


def _swapped(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])
