"""`flux::QKNormRope` in torch; plugins/qk_norm_rope/README.md has its contract."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def qk_norm_rope(
    projected: tuple[Tensor] | tuple[Tensor, Tensor],
    q_scale: Tensor,
    k_scale: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Queries and keys, RMS-normed per head and rotated, in float32 inside.

    While torch.export traces it becomes the node; otherwise it computes.

    Args:
        projected: one tensor [B, L, C], H E channels of queries, H E of keys, then anything; or queries
            and keys apart, [B, L, H E] each.
        q_scale: [E], the weight of the queries' norm.
        k_scale: [E], the weight of the keys' norm.
        cos: float32 [L, E / 2].
        sin: float32 [L, E / 2].
        num_heads: H.
        epsilon: added to the mean square.

    Returns:
        q and k [B, H, L, E] in the dtype of what is projected.
    """
    E, first = q_scale.shape[0], projected[0]
    if torch.compiler.is_exporting():
        q, k = torch.onnx.ops.symbolic_multi_out(
            "flux::QKNormRope",
            (*projected, q_scale, k_scale, cos, sin),
            {"num_heads": num_heads, "epsilon": epsilon},
            dtypes=(first.dtype,) * 2,
            shapes=((first.shape[0], num_heads, first.shape[1], E),) * 2,
            version=1,
        )
        return q, k
    parts = projected if len(projected) == 2 else first[..., : 2 * num_heads * E].chunk(2, dim=-1)
    q, k = (
        rotate(
            F.rms_norm(x.unflatten(-1, (num_heads, E)).transpose(1, 2).float(), (E,), scale.float(), epsilon),
            cos,
            sin,
        ).to(x.dtype)
        for x, scale in zip(parts, (q_scale, k_scale), strict=True)
    )
    return q, k


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (2i, 2i + 1): x [..., L, E], tables [L, E / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
