"""FP8 attentions: what the graph's Q/DQ before q, k and v cannot say, set on the network's attentions.

TensorRT-RTX takes Q/DQ on q, k and v alone for mere rounding and runs the attention in the base type. Both of
its products are FP8 only where what softmax gives is quantised as well. ONNX's Attention has no place for
that, so the graph stays as it is, and runs everywhere, and the attention is told here. Softmax gives 0 to 1:
the scale is 1 over E4M3's largest number, as in the vendor's own recipe (NVIDIA/Model-Optimizer).
"""

from __future__ import annotations

from typing import Any

SCALE = 1 / 448
ATTRIBUTE = "normalization_quantize_to_type"


def quantise(trt: Any, network: Any) -> int:
    """Quantise the softmax of every attention whose q, k and v are; how many.

    Args:
        trt: the flavour's module; one that knows no quantised softmax leaves all as they are.
        network: as the parser made it.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    outputs = ((layer, layer.get_output(index)) for layer in layers for index in range(layer.num_outputs))
    by_output = {tensor.name: layer for layer, tensor in outputs if tensor is not None}
    found = 0
    for layer in layers:
        if layer.type != trt.LayerType.ATTENTION_INPUT or not hasattr(trt.IAttention, ATTRIBUTE):
            continue
        layer.__class__ = trt.IAttentionInputLayer  # how the binding casts a layer
        of = layer.attention
        if all(_dequantised(trt, by_output, of.get_input(index)) for index in range(3)):
            _tell(trt, network, of)
            found += 1
    return found


def _dequantised(trt: Any, by_output: Any, tensor: Any) -> bool:
    """Whether a tensor comes from a DequantizeLinear: at once, or scaled, as the parser does with q and k."""
    layer = by_output.get(tensor.name)
    if layer is not None and layer.type == trt.LayerType.ELEMENTWISE:
        layer = by_output.get(layer.get_input(0).name)
    return layer is not None and layer.type == trt.LayerType.DEQUANTIZE


def _tell(trt: Any, network: Any, of: Any) -> None:
    import numpy as np

    one = network.add_constant((), trt.Weights(np.array(SCALE, np.float32)))
    scale = network.add_cast(one.get_output(0), of.get_input(0).dtype)
    of.normalization_quantize_to_type = trt.DataType.FP8
    of.normalization_quantize_scale = scale.get_output(0)
