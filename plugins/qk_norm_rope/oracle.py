"""What `flux::QKNormRope` computes, in a few lines of numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def qk_norm_rope(
    projected: Sequence[npt.NDArray],
    q_scale: npt.NDArray,
    k_scale: npt.NDArray,
    cos: npt.NDArray,
    sin: npt.NDArray,
    num_heads: int,
    epsilon: float = 1e-6,
) -> tuple[Floats, Floats]:
    """RMS-normalise queries and keys per head, then rotate channel pairs (2i, 2i + 1), in float64.

    As diffusers' FluxAttnProcessor: `norm_q`, `norm_k`, then `apply_rotary_emb`.

    Args:
        projected: one array [B, L, C], H E channels of queries, H E of keys, then anything; or queries and
            keys apart, [B, L, H E] each.
        q_scale: [E], the weight of the queries' norm.
        k_scale: [E], the weight of the keys' norm.
        cos: [L, E / 2], from `rope_tables`.
        sin: [L, E / 2].
        num_heads: H.
        epsilon: added to the mean square.

    Returns:
        q and k, float64 [B, H, L, E].
    """
    (B, L, _), H, E = projected[0].shape, num_heads, q_scale.size
    first, last = projected if len(projected) == 2 else np.split(projected[0][..., : 2 * H * E], 2, axis=-1)
    q, k = (
        each[..., : H * E].astype(np.float64).reshape(B, L, H, E).swapaxes(1, 2) for each in (first, last)
    )
    return _norm_rope(q, q_scale, cos, sin, epsilon), _norm_rope(k, k_scale, cos, sin, epsilon)


def _norm_rope(x: npt.NDArray, scale: npt.NDArray, cos: npt.NDArray, sin: npt.NDArray, eps: float) -> Floats:
    x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale.astype(np.float64)
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)
