"""What FLUX transformers are made of: linear layers, embedders, norms, attention, modulation.

Inside, matrix products have the weights' dtype; norms, softmax statistics, modulation and residual sums are
float32. With float16 every linear layer saturates at +-65504, so that no activation turns into inf or nan.

Shapes: B batch, L tokens, D hidden size, H heads, E head dim, S steps.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flux_trt.exporter.families.rope import qk_norm_rope

EPS = 1e-6
TIME_FACTOR = 1000.0
TIME_CHANNELS = 256
Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each [B, H, L, E]."""


class Linear(nn.Linear):
    """A linear layer whose float16 outputs saturate instead of overflowing."""

    branch: tuple[Tensor, Tensor] | None = None
    """A LoRA's A [in, rank] and B [rank, out], while the layer has such."""

    joined = False
    """Whether its weight has to stay whole: a format whose blocks or codes no slice goes through."""

    def forward(self, *parts: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the weight's dtype; from several parts of its input in float32.

        In 16 bits parts are not joined: each is multiplied by its columns of the weight, and products are
        added. Joined, they would be written once more, and what is before them in 16 bits even in fp8.
        """
        dtype = self.weight.dtype
        if len(parts) > 1 and (self.joined or dtype == torch.float32):
            parts = (torch.cat(parts, dim=-1),)
        parts = tuple(part.to(dtype) for part in parts)
        if len(parts) == 1:
            y = F.linear(parts[0], self.weight, self.bias)
            if self.branch is not None:
                down, up = (each.to(dtype) for each in self.branch)
                y = y + _saturated(parts[0] @ down) @ up
            return _saturated(y)
        ends = list(itertools.accumulate(part.shape[-1] for part in parts))
        columns = [slice(start, end) for start, end in itertools.pairwise((0, *ends))]
        products = [
            _saturated(F.linear(part, self.weight[:, own], self.bias if own.stop == ends[-1] else None))
            for part, own in zip(parts, columns, strict=True)
        ]
        if self.branch is not None:
            down, up = (each.to(dtype) for each in self.branch)
            low = [_saturated(part @ down[own]) for part, own in zip(parts, columns, strict=True)]
            products.append(_saturated(_saturated(sum(low[1:], low[0])) @ up))
        return sum((each.float() for each in products[1:]), products[0].float())


def _saturated(y: Tensor) -> Tensor:
    return F.hardtanh(y, -65504.0, 65504.0) if y.dtype == torch.float16 else y


def plain(into: int, out: int) -> Linear:
    """A linear layer without bias."""
    return Linear(into, out, bias=False)


def gated(x: Tensor) -> Tensor:
    """SwiGLU: [..., 2 C] -> [..., C], the first half is the gate; float16 saturates as in a linear layer."""
    gate, value = x.chunk(2, dim=-1)
    y = F.silu(gate) * value
    return F.hardtanh(y, -65504.0, 65504.0) if y.dtype == torch.float16 else y


class MLPEmbedder(nn.Module):
    """Linear, SiLU, linear: embeds the time, the guidance and the pooled text."""

    def __init__(self, in_dim: int, hidden_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.in_layer = Linear(in_dim, hidden_dim, bias)
        self.out_layer = Linear(hidden_dim, hidden_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] -> [..., D]."""
        return self.out_layer(F.silu(self.in_layer(x)))


def timestep_embedding(t: Tensor) -> Tensor:
    """Sinusoids of t x 1000: [N] -> [N, 256], cosines first (BFL modules/layers.py)."""
    half = TIME_CHANNELS // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    args = (TIME_FACTOR * t)[:, None] * freqs[None]
    return torch.cat([args.cos(), args.sin()], dim=-1)


class RMSNorm(nn.Module):
    """The weight of a root-mean-square norm over a head's channels; `qk_norm_rope` does the norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))


class QKNorm(nn.Module):
    """The norms of the queries and the keys."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    def turned(self, q: Tensor, k: Tensor, num_heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """q and k [B, L, D] by themselves, rotations [L, E / 2] -> both normed and rotated, [B, H, L, E]."""
        scales = self.query_norm.scale, self.key_norm.scale
        return qk_norm_rope((q, k), *scales, cos, sin, num_heads, EPS)


class SelfAttention(nn.Module):
    """The projections around an attention that several streams share."""

    def __init__(self, hidden_size: int, head_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.qkv = Linear(hidden_size, 3 * hidden_size, bias)
        self.norm = QKNorm(head_dim)
        self.proj = Linear(hidden_size, hidden_size, bias)


def split_heads(qkv: Tensor, norm: QKNorm, num_heads: int, cos: Tensor, sin: Tensor) -> Heads:
    """[B, L, 3 D or more], rotations [L, E / 2] -> q, k (normed, rotated) and v, each [B, H, L, E]."""
    E = norm.query_norm.scale.shape[0]
    D = num_heads * E
    q, k = qk_norm_rope((qkv,), norm.query_norm.scale, norm.key_norm.scale, cos, sin, num_heads, EPS)
    return q, k, qkv[..., 2 * D : 3 * D].unflatten(-1, (num_heads, E)).transpose(1, 2)


def stream(layer: Linear) -> torch.dtype:
    """Of the residual stream behind a layer: float32 where sums in the weights' type could overflow."""
    return torch.float32 if layer.weight.dtype == torch.float16 else layer.weight.dtype


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the joint sequence: q, k, v [B, H, N, E] -> [B, N, D]."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine, then (1 + scale) x + shift, in float32: x [B, L, D], rows [B, 1, D]."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS) * (1 + scale) + shift


def residual(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate x branch, in float32, kept in x's dtype: x, branch [B, L, D], gate [B, 1, D].

    Of 16 bits -x is subtracted, which is the same number: TensorRT keeps a stream between two kernels in the
    type that its last use begins with, and would keep x.float().
    """
    if x.dtype == torch.float32:
        return x + gate * branch.float()
    return (gate * branch.float() - (-x).float()).to(x.dtype)
