"""The tables against diffusers; `flux::QKNormRope` in torch and in ONNX against the oracle, and that too."""

import ml_dtypes
import numpy as np
import onnxruntime
import openvino as ov
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed
from family_rules import FLUX1
from onnx.reference import ReferenceEvaluator
from openvino.frontend.onnx import ConversionExtension
from rope_case import draw, graph

from flux_trt.exporter.families.rope import qk_norm_rope as in_torch
from flux_trt.plugins.qk_norm_rope.oracle import qk_norm_rope
from flux_trt.plugins.rope import rope_tables
from flux_trt.runtime.backends import openvino_rope
from flux_trt.runtime.sampling.positions import places


@pytest.mark.parametrize(
    ("embed", "axes", "theta"),
    [
        (FluxPosEmbed, (16, 56, 56), 10000),
        (FluxPosEmbed, (16, 24, 24), 10000),
        (Flux2PosEmbed, (32, 32, 32, 32), 2000),
        (Flux2PosEmbed, (8, 8, 16), 2000),
    ],
)
def test_tables_equal_diffusers(embed, axes, theta):
    rng = np.random.default_rng(len(axes))
    positions = rng.integers(0, 512, (300, len(axes))).astype(np.float32)
    found = rope_tables(positions, axes, theta)
    expected = embed(theta, list(axes))(torch.from_numpy(positions))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == (300, sum(axes) // 2)
        np.testing.assert_allclose(np.repeat(mine, 2, axis=1), theirs.numpy(), rtol=0, atol=1e-7)


def test_tables_of_a_4096_picture_with_three_references_equal_diffusers():
    positions = places(FLUX1, 512, [(256, 256), (64, 64), (32, 96), (96, 32)])
    assert positions.max(axis=0).tolist() == [3, 255, 255]
    found = rope_tables(positions, (16, 56, 56), 10000)
    expected = FluxPosEmbed(10000, [16, 56, 56])(torch.from_numpy(positions))
    for mine, theirs in zip(found, expected, strict=True):
        assert abs(mine - theirs.numpy()[:, ::2]).max() <= 1e-7


def test_flux2_text_and_references_have_positions_of_their_own():
    """FLUX.2's text tokens count on the last axis, its reference pictures on the first."""
    text = [(0, 0, 0, word) for word in range(5)]
    picture = [(t, y, x, 0) for t in (0, 10, 20) for y in range(2) for x in range(3)]
    positions = np.array(text + picture)
    found = rope_tables(positions, (32,) * 4, 2000)
    expected = Flux2PosEmbed(2000, [32] * 4)(torch.from_numpy(positions))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.repeat(mine, 2, axis=1), theirs.numpy(), rtol=0, atol=1e-7)
    assert len({row.tobytes() for row in found[1]}) == len({*map(tuple, positions.tolist())})


def test_positions_and_axes_must_fit():
    with pytest.raises(ValueError, match="one column for each of 3 axes"):
        rope_tables(np.zeros((4, 2)), (16, 56, 56), 10000)
    with pytest.raises(ValueError, match="must be even"):
        rope_tables(np.zeros((4, 2)), (16, 15), 10000)


def test_the_oracle_equals_diffusers():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 40, 3, 64, generator=generator)
    q_scale, k_scale = torch.rand(2, 64, generator=generator) + 0.5
    positions = places(FLUX1, 10, [(5, 6)])
    cos, sin = rope_tables(positions, (16, 24, 24), 10000)
    qkv = torch.stack([q, k, v], dim=2).flatten(2).numpy()
    found = qk_norm_rope([qkv], q_scale.numpy(), k_scale.numpy(), cos, sin, num_heads=3)
    tables = FluxPosEmbed(10000, [16, 24, 24])(torch.from_numpy(positions))
    for mine, x, scale in ((found[0], q, q_scale), (found[1], k, k_scale)):
        normed = torch.nn.functional.rms_norm(x, (64,), scale, 1e-6)
        theirs = apply_rotary_emb(normed, tables, sequence_dim=1).transpose(1, 2)
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=1e-5)


CASES = [(1, 7, 2, 32, 0), (2, 5, 3, 48, 48), (2, 9, 1, 256, 100)]
apart = pytest.mark.parametrize("apart", [False, True], ids=["packed", "apart"])


def drawn(dtype, batch, tokens, heads, head_dim, extra, apart):
    """The function takes nothing behind queries or keys that are apart."""
    return draw(dtype, batch, tokens, heads, head_dim, 0 if apart else extra, apart=apart)


@pytest.mark.parametrize("shape", CASES)
@apart
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_function_in_onnx_reference(dtype, apart, shape):
    case = drawn(dtype, *shape, apart)
    case.check(ReferenceEvaluator(graph(case)).run(None, case.tensors))


@pytest.mark.parametrize("shape", CASES)
@apart
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_function_in_onnxruntime(dtype, apart, shape):
    """bfloat16 is left out: onnxruntime's CPU provider has no kernels for it."""
    case = drawn(dtype, *shape, apart)
    session = onnxruntime.InferenceSession(
        graph(case).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    case.check(session.run(None, case.tensors))


@pytest.mark.parametrize("shape", CASES)
@apart
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_op_in_torch(dtype, apart, shape):
    case, inside = drawn(dtype, *shape, apart), getattr(torch, np.dtype(dtype).name)
    tensors = [torch.from_numpy(x.astype(np.float32)) for x in case.tensors.values()]
    tensors[:-2] = [x.to(inside) for x in tensors[:-2]]
    found = in_torch(tuple(tensors[:-4]), *tensors[-4:], case.heads, case.epsilon)
    assert {x.dtype for x in found} == {inside}
    case.check([x.float().numpy().astype(case.qkv.dtype) for x in found])


@apart
@pytest.mark.parametrize("shape", CASES)
def test_the_op_in_openvino(shape, apart):
    """By the conversion of its own, as OpenVINO does not inline functions."""
    case = drawn(np.float32, *shape, apart)
    core = ov.Core()
    core.add_extension(ConversionExtension("QKNormRope", "flux", openvino_rope.qk_norm_rope))
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(graph(case).SerializeToString()), "CPU", hint)
    found = compiled(case.tensors)
    case.check([found[index] for index in range(2)])


def test_the_largest_float16_has_a_norm():
    """Squares are float32's: of 65504 in float16 they would be infinite."""
    case = drawn(np.float16, *CASES[0], True)
    case.qkv[:] = np.sign(case.qkv) * 65504
    session = onnxruntime.InferenceSession(
        graph(case).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    case.check(session.run(None, case.tensors))
