"""The numbers of INT8, INT4 and NVFP4, against ONNX's own operators, onnxruntime and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from flux_trt.exporter.quantise import fp4, int4, int8
from flux_trt.exporter.quantise.format import SCALE, SCALE_2
from flux_trt.exporter.quantise.formats import FORMATS, RANGED
from flux_trt.runtime.bundle.manifest import QUANTISED

BASES = [torch.float32, torch.float16, torch.bfloat16]


def weights(out: int = 48, into: int = 128) -> torch.Tensor:
    """Rows of very different sizes, and one of zeros."""
    made = torch.randn(out, into, generator=torch.Generator().manual_seed(3))
    made *= torch.logspace(-2, 1, out)[:, None]
    made[7] = 0
    return made


def test_every_quantised_precision_has_a_format() -> None:
    assert set(FORMATS) == set(QUANTISED)
    assert set(RANGED) == {"fp8", "int8", "nvfp4"}


@pytest.mark.parametrize("scale", [1.0, 0.037, 3e-5])
def test_int8_is_quantize_linear_s(scale: float) -> None:
    """Bit by bit: ties, and what saturates on both sides."""
    ties = torch.arange(-130, 130) + 0.5
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 60
    x = torch.cat([ties, noise, torch.tensor([-1e6, 1e6, 127.4, -128.6])]) * scale
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    constants = [
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    graph = helper.make_graph(nodes, "qdq", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(int8.SCALED.rounded(x, torch.tensor(scale)).numpy(), expected)


@pytest.mark.parametrize("dtype", BASES)
@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_weights_lose_half_a_step(dtype: torch.dtype, per_channel: bool) -> None:
    exact = weights()
    parts = int8.SCALED.encode(exact, dtype, per_channel)
    assert (parts[""].dtype, parts[""].shape) == (torch.int8, (128, 48))
    scale = parts[SCALE].float()
    numbers = parts[""].T.float() * (scale[:, None] if per_channel else scale)
    assert ((numbers - exact).abs() <= 0.5 * scale.unsqueeze(-1) * (1 + 1e-6)).all()
    assert torch.equal(int8.SCALED.decode(parts, torch.float32).float(), numbers)


def test_four_bits_lie_as_ml_dtypes_has_them() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 2)
    bytes_ = int4.packed(codes.view(torch.uint8)).numpy()
    expected = numpy_helper.from_array(codes.numpy().astype(ml_dtypes.int4))
    assert bytes_.tobytes() == expected.raw_data
    assert torch.equal(int4.unpacked(torch.from_numpy(bytes_)), codes.view(torch.uint8) & 0xF)


@pytest.mark.parametrize("dtype", BASES)
def test_int4_blocks_are_dequantize_linear_s(dtype: torch.dtype) -> None:
    exact = weights()
    parts = int4.Blocks().encode(exact, dtype, True)
    assert {name: tuple(each.shape) for name, each in parts.items()} == {"": (128, 24), SCALE: (2, 48)}
    codes = int4.unpacked(parts[""]).numpy().astype(np.uint8)
    signed = np.where(codes > 7, codes.astype(np.int8) - 16, codes).astype(ml_dtypes.int4)
    scales = parts[SCALE].float().numpy()
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=0, block_size=64)
    ends = [
        helper.make_tensor_value_info("w", TensorProto.INT4, [128, 48]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, [2, 48]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [128, 48]),
    ]
    graph = helper.make_graph([node], "dq", ends[:2], ends[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    (found,) = ReferenceEvaluator(model).run(None, {"w": signed, "s": scales})
    numbers = int4.Blocks().decode(parts, torch.float32)
    np.testing.assert_array_equal(numbers.numpy(), found.T)
    step = torch.from_numpy(scales).T.repeat_interleave(64, 1)
    assert ((numbers - exact).abs() <= 0.5 * step * (1 + 2**-8)).all()


def test_e2m1_is_the_nearest_even() -> None:
    """Against ml_dtypes, bit by bit: every number, every tie, and what saturates."""
    ties = (fp4.VALUES[1:] + fp4.VALUES[:-1]) / 2
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 3
    x = torch.cat([fp4.VALUES, -fp4.VALUES, ties, -ties, noise, torch.tensor([7.0, -1e6])])
    clipped = x.clamp(-6, 6).numpy()
    expected = clipped.astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(fp4.to_e2m1(x).numpy(), expected.view(np.uint8))
    np.testing.assert_array_equal(
        fp4.from_e2m1(fp4.to_e2m1(x), torch.float32).numpy(), expected.astype(np.float32)
    )


@pytest.mark.parametrize("dtype", BASES)
def test_nvfp4_weights_are_two_dequantize_linear_s(dtype: torch.dtype) -> None:
    exact = weights()
    parts = fp4.FP4.encode(exact, dtype, True)
    assert {name: tuple(each.shape) for name, each in parts.items()} == {
        "": (48, 64),
        SCALE: (48, 8),
        SCALE_2: (),
    }
    codes = fp4.unpacked(parts[""]).numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    scales = parts[SCALE].float().numpy() * parts[SCALE_2].float().numpy()
    numbers = (codes.reshape(48, 8, 16) * scales[..., None]).reshape(48, 128)
    rounding = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    found = fp4.FP4.decode(parts, dtype).float().numpy()
    np.testing.assert_allclose(found, numbers, rtol=rounding, atol=1e-7)
    step = np.repeat(scales, 16, 1)  # neighbours are at most 2 apart, and a scale is rounded by 1/16 at most
    assert (np.abs(found - exact.numpy()) <= step * 1.5 + 1e-6)[exact.abs().amax(1) > 0.1].all()
    assert (found[7] == 0).all()
    lost = np.linalg.norm(found - exact.numpy()) / exact.norm()
    assert 0.03 < lost < 0.12


def test_nvfp4_inputs_have_a_scale_for_each_block() -> None:
    x = weights().reshape(2, 24, 128)
    scalar = fp4.scalar_of(x.abs().max(), torch.float32)
    found = fp4.FP4.rounded(x, scalar)
    assert found.shape == x.shape
    assert 0.03 < float((found - x).norm() / x.norm()) < 0.12
    assert torch.equal(fp4.FP4.rounded(found, scalar), found), "what is on the grid stays"
