"""The numbers of E4M3, against ONNX's own operators and against NumPy."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from flux_trt.exporter.quantise.e4m3 import (
    E4M3,
    LARGEST,
    quantize_weight,
    rounded,
    scale_of,
    to_e4m3,
)
from flux_trt.exporter.quantise.histogram import Histogram

BASES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def qdq() -> onnxruntime.InferenceSession:
    """x float32 [n], scale [] -> DequantizeLinear(QuantizeLinear(x))."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])]
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    graph = helper.make_graph(nodes, "qdq", inputs, outputs, [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("scale", [1.0, 0.037, 3e-5])
def test_rounding_is_quantize_linear_s(qdq: onnxruntime.InferenceSession, scale: float) -> None:
    """Bit by bit: every E4M3 value, the ties between neighbours, subnormals, and what saturates."""
    exact = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    exact = exact[exact.isfinite()].sort().values
    ties = (exact[1:] + exact[:-1]) / 2
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 100
    x = torch.cat([exact, ties, noise, torch.tensor([460.0, 464.0, 500.0, -1e6])]) * scale
    (expected,) = qdq.run(None, {"x": x.numpy(), "scale": np.array(scale, np.float32)})
    np.testing.assert_array_equal(rounded(x, torch.tensor(scale)).numpy(), expected)


@pytest.mark.parametrize("dtype", BASES)
def test_a_scale_is_the_smallest_that_brings_amax_inside(dtype: torch.dtype) -> None:
    amax = torch.logspace(-4, 4, 400)
    scale = scale_of(amax, dtype)
    assert scale.dtype == dtype
    assert (scale.double() * LARGEST * (1 + 1e-7) >= amax).all()
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    below = (scale.view(bits) - 1).view(dtype)
    assert (below.double() * LARGEST < amax).all()


def test_scales_at_the_edges() -> None:
    assert scale_of(torch.tensor(0.0), torch.float32) == 1
    huge = scale_of(torch.tensor(1e6), torch.float16)
    assert torch.isfinite(rounded(torch.tensor(6e4, dtype=torch.float16), huge))
    assert float(to_e4m3(torch.tensor(6e4), huge).float()) * float(huge) <= 65504


@pytest.mark.parametrize("dtype", BASES)
def test_weights_keep_four_bits_whatever_their_channel_s_size(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(48, 96, generator=generator) * torch.logspace(-5, 1, 48)[:, None]
    weight[7] = 0
    small, scale = quantize_weight(weight, dtype, per_channel=True)
    assert (small.dtype, small.shape, scale.shape) == (E4M3, (48, 96), (48,))
    back = small.float() * scale.float()[:, None]
    largest = weight.abs().amax(1, keepdim=True)
    # Half a step: 2^-4 of the value, or of the smallest normal number, 2^-6, which is 2^-14.8 of the largest.
    error, allowed = (back - weight).abs(), torch.maximum(weight.abs() * 2**-4, largest * 2**-18)
    assert (error <= allowed * 1.01)[largest.squeeze() > 1e-4].all()
    assert (back[7] == 0).all()
    one, single = quantize_weight(weight, dtype, per_channel=False)
    assert single.shape == ()
    assert (one.float() * single.float() - weight).norm() > (back - weight).norm()


def test_percentiles_to_a_sixteenth() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(200_000), rng.standard_normal(300) * 50]).astype(np.float32)
    seen = Histogram()
    for part in np.array_split(values, 7):
        seen.add(torch.from_numpy(part).view(-1, 1))
    assert (seen.total, seen.amax, seen.finite) == (len(values), float(np.abs(values).max()), True)
    for percent in (50, 99.9, 99.99, 99.999):
        exact = np.percentile(np.abs(values), percent, method="inverted_cdf")
        assert exact <= seen.percentile(percent) <= exact * (1 + 1 / 16) + 1e-12
    assert seen.percentile(100) == seen.amax


def test_a_histogram_goes_on_from_its_counts_and_sees_nan() -> None:
    whole, first = Histogram(), Histogram()
    a, b = torch.randn(1000), torch.randn(1000, 3)
    whole.add(a), whole.add(b), first.add(a)
    second = Histogram(first.counts.clone(), first.amax)
    second.add(b)
    assert torch.equal(second.counts, whole.counts)
    assert second.amax == whole.amax
    second.add(torch.tensor([1.0, float("nan")]))
    assert not second.finite
