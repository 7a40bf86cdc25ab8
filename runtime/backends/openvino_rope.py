"""`flux::QKNormRope` in OpenVINO's operators: its ONNX front end does not inline a graph's own functions.

OpenVINO fuses the norms as they are written here into its RMS kernel. The rotation gathers each channel's
neighbour, with the signs in the table of sines, which takes half the time of splitting and joining the pairs.
The contract is in plugins/qk_norm_rope/README.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset15 as op


def qk_norm_rope(node: Any) -> list[Any]:
    """The queries and keys [B, H, L, E] of a node of the graph.

    Args:
        node: OpenVINO's `NodeContext`, with the inputs qkv [B, L, C], or q and k [B, L, H E] apart, then
            q_scale [E], k_scale [E], cos and sin [L, E / 2], and the attributes `num_heads` and `epsilon`.
    """
    *projected, q_scale, k_scale, cos, sin = (node.get_input(index) for index in range(node.get_input_size()))
    H, epsilon = node.get_attribute("num_heads"), node.get_attribute("epsilon")
    E = q_scale.get_partial_shape()[0].get_length()
    cos, sin = _table(cos, cos, E), _table(op.multiply(sin, _float(-1)), sin, E)
    neighbours = _ints(*(channel ^ 1 for channel in range(E)))
    made = []
    for part, scale in enumerate((q_scale, k_scale)):
        if len(projected) == 2:
            x = projected[part]
        else:
            x = op.slice(projected[0], _ints(part * H * E), _ints((part + 1) * H * E), _ints(1), _ints(2))
        x = op.convert(op.reshape(x, _ints(0, 0, H, E), True), "f32")
        x = op.multiply(_normed(x, epsilon), op.convert(scale, "f32"))
        x = op.transpose(x, _ints(0, 2, 1, 3))
        x = op.add(op.multiply(x, cos), op.multiply(op.gather(x, neighbours, _ints(3)), sin))
        made.append(op.convert_like(x, projected[0]).output(0))
    return made


def _normed(x: Any, epsilon: float) -> Any:
    square = op.reduce_mean(op.power(x, _float(2)), _ints(-1), True)
    return op.multiply(x, op.divide(_float(1), op.sqrt(op.add(square, _float(epsilon)))))


def _table(even: Any, odd: Any, E: int) -> Any:
    """Two of [L, E / 2] -> [1, 1, L, E], for the even channels and for the odd ones."""
    pairs = op.concat([op.unsqueeze(even, _ints(2)), op.unsqueeze(odd, _ints(2))], 2)
    return op.reshape(pairs, _ints(1, 1, -1, E), False)


def _ints(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def _float(value: float) -> Any:
    return op.constant(np.array(value, np.float32))
