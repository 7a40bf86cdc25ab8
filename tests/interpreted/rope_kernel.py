"""The kernel under Triton's interpreter against the numpy oracle.

Not collected with the other tests: the interpreter has to be chosen before Triton is imported, so
tests/unit/test_rope_kernel.py runs this file in a process of its own.
"""

import os

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_case import RopeCase, draw

from flux_trt.plugins.qk_norm_rope.kernel import qk_norm_rope

assert os.environ["TRITON_INTERPRET"] == "1"
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def tensor(x: np.ndarray) -> torch.Tensor:
    """The same bytes in torch, with a margin on both sides so that a read beyond the ends is seen."""
    return torch.from_numpy(np.array(x, np.float32)).to(getattr(torch, x.dtype.name))


def launch(case: RopeCase, tokens: int = 8, heads: int = 4, fp8: tuple[float, float] | None = None):
    """q and k of a case, from programs of `tokens` tokens and `heads` heads."""
    (B, L, C), E = case.qkv.shape, case.tensors["q_scale"].size
    dtype = torch.float8_e4m3fn if fp8 else getattr(torch, case.qkv.dtype.name)
    shape, guard = (B, case.heads, L, E), 64
    whole = [torch.full((B * case.heads * L * E + 2 * guard,), 7.0).to(dtype) for _ in range(2)]
    outputs = [x[guard:-guard].view(shape) for x in whole]
    grid = (-(-L // tokens), -(-case.heads // heads), B)
    sizes = (L, C, case.heads, E, case.epsilon, *(fp8 or (1.0, 1.0)))
    inputs = [tensor(x) for x in case.tensors.values()]
    if len(case.projected) == 1:
        inputs.insert(1, inputs[0].flatten()[case.heads * E :])  # the first key, as `Launch.run` has it
    width = max(32, 1 << (E - 1).bit_length())
    qk_norm_rope[grid](*inputs, *outputs, *sizes, TOKENS=tokens, HEADS=heads, WIDTH=width)
    for x in whole:
        assert (x[:guard].float() == 7).all()
        assert (x[-guard:].float() == 7).all()
    return outputs


def check(case: RopeCase, found: list[torch.Tensor]) -> None:
    """Triton's interpreter cuts digits off to make bfloat16, where GPUs round (`_convert_float`)."""
    arrays = [x.float().numpy().astype(case.qkv.dtype) for x in found]
    case.check(arrays, truncated=case.qkv.dtype == ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 48, 64, 128, 256])
@pytest.mark.parametrize("apart", [False, True])
def test_head_dims(dtype, head_dim, apart):
    case = draw(dtype, 2, 5, 3, head_dim, extra=4 * head_dim, apart=apart)
    check(case, launch(case))


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 21),
    heads=st.integers(1, 7),
    head_dim=st.sampled_from(range(32, 144, 16)),
    extra=st.integers(0, 9).map(lambda n: 32 * n),
    size=st.sampled_from([1e-3, 1.0, 100.0]),
    tile=st.sampled_from([(8, 4), (1, 1), (4, 2), (16, 8)]),
    seed=st.integers(0, 1000),
    apart=st.booleans(),
)
def test_any_size(dtype, batch, tokens, heads, head_dim, extra, size, tile, seed, apart):
    case = draw(dtype, batch, tokens, heads, head_dim, extra, size=size, seed=seed, apart=apart)
    check(case, launch(case, *tile))


def test_large_activations_stay_finite_in_fp16():
    case = draw(np.float16, 1, 4, 2, 64, 0)
    case.qkv[:] = np.clip(case.qkv.astype(np.float32) * 3e4, -65504, 65504)
    assert np.abs(case.qkv).max() == 65504
    check(case, launch(case))


def test_a_token_of_zeros_stays_zero():
    case = draw(np.float16, 1, 3, 1, 32, 0)
    case.qkv[0, 1] = 0
    for x in launch(case):
        assert (x[0, :, 1] == 0).all()
        assert (x[0, :, 2] != 0).any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_fp8_is_the_quotient_rounded_and_saturated(dtype):
    case, scales = draw(dtype, 2, 5, 3, 64, extra=16), (0.05, 0.002)
    saturated = []
    for found, exact, scale in zip(launch(case, fp8=scales), case.expected, scales, strict=True):
        quotient = np.clip(exact / scale, -448, 448)
        saturated.append(float((np.abs(quotient) == 448).mean()))
        nearest = quotient.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
        # The interpreter loses the carry of a mantissa that is rounded up to a power of two.
        fair = ~((np.abs(nearest) > np.abs(quotient)) & (np.frexp(nearest)[0] % 0.5 == 0))
        assert fair.mean() > 0.9
        mine, quotient, nearest = found.float().numpy()[fair], quotient[fair], nearest[fair]
        # Half a step: 2^-4 of the number; 2^-10 among the subnormals, below 2^-6. Float32's errors on top.
        limit = np.maximum(2.0**-4 * np.abs(quotient), 2.0**-10) * (1 + 1e-5) + 1e-5
        assert (np.abs(mine - quotient) <= limit).all()
        assert (mine == nearest).mean() > 0.99, "only what lies between two numbers may fall either way"
    assert saturated[0] == 0
    assert 0.1 < saturated[1] < 0.9
