"""llama.cpp's names of T5's tensors -> transformers'.

Source: https://github.com/city96/ComfyUI-GGUF/blob/main/loader.py and gguf's tensor_mapping.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)\.weight")
IN_BLOCK = {
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
OUTSIDE = {
    "token_embd.weight": "shared.weight",
    "enc.output_norm.weight": "encoder.final_layer_norm.weight",
    "output.weight": "lm_head.weight",
}


def t5_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors under transformers' names if they are a T5, as they are if not."""
    if not any(BLOCK.fullmatch(name) for name in tensors):
        return dict(tensors)
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def _renamed(name: str) -> str:
    if (match := BLOCK.fullmatch(name)) and match[2] in IN_BLOCK:
        return f"encoder.block.{match[1]}.{IN_BLOCK[match[2]]}.weight"
    if name.startswith("dec."):
        return "decoder." + name.removeprefix("dec.")
    return OUTSIDE.get(name, name)
