"""The kernel of `flux::QKNormRope`. The one file of the package, with `compile`, that needs Triton."""

# Triton gives the types of a kernel when it compiles it.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

FP8_LARGEST = tl.constexpr(448.0)


@triton.jit
def norm_rope(x, scale, cos, sin, head_dim, epsilon):
    """Norm, scale and rotate: x [TOKENS, WIDTH] of any dtype, tables [TOKENS, WIDTH / 2] -> float32."""
    x = x.to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / head_dim + epsilon)
    even, odd = tl.split((x * scale).reshape(x.shape[0], x.shape[1] // 2, 2))
    return tl.join(even * cos - odd * sin, odd * cos + even * sin).reshape(x.shape)


@triton.jit
def store(pointers, x, inside, fp8_scale):
    """Round x to the pointers' dtype; E4M3 holds x / fp8_scale, saturated."""
    if pointers.dtype.element_ty == tl.float8e4nv:
        x = tl.clamp(x / fp8_scale, -FP8_LARGEST, FP8_LARGEST)
    tl.store(pointers, x.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def qk_norm_rope(
    q_in,
    k_in,
    q_scale,
    k_scale,
    cos,
    sin,
    q_out,
    k_out,
    tokens,
    channels,
    heads,
    head_dim,
    epsilon,
    q_fp8_scale,
    k_fp8_scale,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Queries and keys of TOKENS tokens and HEADS heads of one picture; `binary.Kernel.grid` is its grid.

    The tables are read once for all these heads, and each head's row is read and written once. Norms' weights
    are read as a tile, though all its rows are alike, so that they lie in registers as the channels do.

    Args:
        q_in, k_in: the first query and the first key; [batch, tokens, channels] begins at each, or both lie
            in one such tensor, the keys behind the queries.
        q_scale, k_scale: [head_dim] in their dtype.
        cos, sin: float32 [tokens, head_dim / 2].
        q_out, k_out: [batch, heads, tokens, head_dim] in their dtype or E4M3.
        tokens, channels, heads, head_dim: sizes; channels and head_dim are multiples of 16.
        epsilon: added to the mean square.
        q_fp8_scale, k_fp8_scale: what E4M3's 1.0 stands for; unused otherwise.
        TOKENS, HEADS: of one program. WIDTH: head_dim's next power of two.
    """
    picture = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    column, pair = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH // 2)[None, :]
    inside = (token < tokens) & (column < head_dim)
    pairs_inside = (token < tokens) & (pair < head_dim // 2)

    angles = token * (head_dim // 2) + pair
    cosine = tl.load(cos + angles, mask=pairs_inside, other=0.0)
    sine = tl.load(sin + angles, mask=pairs_inside, other=0.0)
    columns = column + 0 * token
    q_weight = tl.load(q_scale + columns, mask=inside, other=0.0).to(tl.float32)
    k_weight = tl.load(k_scale + columns, mask=inside, other=0.0).to(tl.float32)

    first = tl.program_id(1) * HEADS
    read = picture * tokens * channels + token.to(tl.int64) * channels + column
    plane = tokens.to(tl.int64) * head_dim
    write = picture * heads * plane + token * head_dim + column
    for head in range(first, tl.minimum(first + HEADS, heads)):
        q = tl.load(q_in + read + head * head_dim, mask=inside, other=0.0)
        k = tl.load(k_in + read + head * head_dim, mask=inside, other=0.0)
        at = write + head * plane
        q = norm_rope(q, q_weight, cosine, sine, head_dim, epsilon)
        k = norm_rope(k, k_weight, cosine, sine, head_dim, epsilon)
        store(q_out + at, q, inside, q_fp8_scale)
        store(k_out + at, k, inside, k_fp8_scale)
