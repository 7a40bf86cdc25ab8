"""`flux::QKNormRope` in OpenVINO's operators: its ONNX front end does not inline a graph's own functions.

OpenVINO fuses the norms as they are written here into its RMS kernel. plugins/qk_norm_rope/README.md has the
node's contract.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset15 as op


def qk_norm_rope(node: Any) -> list[Any]:
    """The queries and keys [B, H, L, E] of a node of the graph.

    Args:
        node: OpenVINO's `NodeContext`, with the inputs qkv [B, L, C], q_scale [E], k_scale [E], cos and sin
            [L, E / 2] and the attributes `num_heads` and `epsilon`.
    """
    qkv, q_scale, k_scale, cos, sin = (node.get_input(index) for index in range(5))
    H, epsilon = node.get_attribute("num_heads"), node.get_attribute("epsilon")
    E = q_scale.get_partial_shape()[0].get_length()
    cos, sin = _table(cos, E), _table(sin, E)
    made = []
    for part, scale in enumerate((q_scale, k_scale)):
        x = op.slice(qkv, _ints(part * H * E), _ints((part + 1) * H * E), _ints(1), _ints(2))
        x = op.convert(op.reshape(x, _ints(0, 0, H, E), True), "f32")
        x = op.multiply(_normed(x, epsilon), op.convert(scale, "f32"))
        x = op.transpose(x, _ints(0, 2, 1, 3))
        pairs = op.split(op.reshape(x, _ints(0, 0, 0, E // 2, 2), True), _int(-1), 2)
        turned = op.concat([op.multiply(pairs.output(1), _float(-1)), pairs.output(0)], -1)
        turned = op.reshape(turned, _ints(0, 0, 0, E), True)
        x = op.add(op.multiply(x, cos), op.multiply(turned, sin))
        made.append(op.convert_like(x, qkv).output(0))
    return made


def _normed(x: Any, epsilon: float) -> Any:
    square = op.reduce_mean(op.power(x, _float(2)), _ints(-1), True)
    return op.multiply(x, op.divide(_float(1), op.sqrt(op.add(square, _float(epsilon)))))


def _table(table: Any, E: int) -> Any:
    """[L, E / 2] -> [1, 1, L, E], every value twice."""
    column = op.unsqueeze(table, _ints(2))
    return op.reshape(op.concat([column, column], 2), _ints(1, 1, -1, E), False)


def _int(value: int) -> Any:
    return op.constant(np.array(value, np.int64))


def _ints(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def _float(value: float) -> Any:
    return op.constant(np.array(value, np.float32))
