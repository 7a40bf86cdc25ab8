"""A decoder-only language model that is tapped: what some of its layers have written, side by side.

Layers behind the last tap do not exist here. Queries may share keys and values (grouped queries), and queries
and keys may be normed. Weights have transformers' names without what stands before `embed_tokens`.

One mask rule serves padding on either side: a token attends the real tokens up to itself. In front of the
first real token there are none, and what attends nothing becomes 0, as in PyTorch's attention; runtimes
disagree about rows without any key, so such a row attends itself and its result is multiplied by 0.

Norms, rotation and softmax statistics are float32; all else has the weights' dtype.

Shapes: B batch, T tokens, C channels, H heads, G heads of keys and values, E head dim, K taps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TowerParams:
    """The shape of a tower, as far as it is tapped."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    eps: float
    normed: bool
    """Whether queries and keys are RMS-normed per head."""
    taps: tuple[int, ...]
    """Layers whose output is given, counted from 1, ascending."""
    pad_place: int | None = None
    """Where all padding stands; None: each where it is counted to."""

    @property
    def layers(self) -> int:
        """How many are run."""
        return self.taps[-1]

    @property
    def width(self) -> int:
        """Channels that are given."""
        return len(self.taps) * self.hidden_size


def tower_params(config: Mapping[str, Any], normed: bool, taps: tuple[int, ...]) -> TowerParams:
    """From transformers' config of the language model.

    Raises:
        KeyError: an entry that is missing.
        ValueError: what the tower does not do.
    """
    if config.get("hidden_act", "silu") != "silu" or config.get("attention_bias"):
        raise ValueError("SiLU, and attention without bias")
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"]}
    scaled = config.get("rope_scaling") or {}
    if (kind := rope.get("rope_type", scaled.get("rope_type", "default"))) != "default":
        raise ValueError(f"plain rotation, not {kind}")
    if config.get("use_sliding_window") or (
        "use_sliding_window" not in config and config.get("sliding_window")
    ):
        raise ValueError("attention without a sliding window")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return TowerParams(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        intermediate_size=config["intermediate_size"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or hidden // heads,
        theta=float(rope["rope_theta"]),
        eps=float(config["rms_norm_eps"]),
        normed=normed,
        taps=taps,
    )


class Norm(nn.Module):
    """A root-mean-square norm with a weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C], float32."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)


def linear(into: int, out: int) -> nn.Linear:
    """A linear layer without bias."""
    return nn.Linear(into, out, bias=False)


class Attention(nn.Module):
    """Grouped queries, rotated by halves of a head."""

    def __init__(self, p: TowerParams) -> None:
        super().__init__()
        self.p = p
        self.q_proj = linear(p.hidden_size, p.heads * p.head_dim)
        self.k_proj = linear(p.hidden_size, p.kv_heads * p.head_dim)
        self.v_proj = linear(p.hidden_size, p.kv_heads * p.head_dim)
        self.o_proj = linear(p.heads * p.head_dim, p.hidden_size)
        if p.normed:
            self.q_norm = Norm(p.head_dim, p.eps)
            self.k_norm = Norm(p.head_dim, p.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, allowed: Tensor, alive: Tensor) -> Tensor:
        """Attention of tokens that are alive, to those that are allowed.

        Args:
            x: [B, T, C].
            cos, sin: [T, E / 2], or [B, 1, T, E / 2].
            allowed: bool [B, 1, T, T].
            alive: [B, T, 1] of 0 and 1.

        Returns:
            [B, T, C].
        """
        p = self.p
        q = self.q_proj(x).unflatten(-1, (p.heads, p.head_dim))
        k = self.k_proj(x).unflatten(-1, (p.kv_heads, p.head_dim))
        v = self.v_proj(x).unflatten(-1, (p.kv_heads, p.head_dim)).transpose(1, 2)
        if p.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (turned(each.transpose(1, 2), cos, sin).to(v.dtype) for each in (q, k))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=p.kv_heads < p.heads)
        return self.o_proj(found.transpose(1, 2).flatten(2) * alive)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (i, i + E / 2): x [..., T, E], tables [..., T, E / 2] -> float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, p: TowerParams) -> None:
        super().__init__()
        self.gate_proj = linear(p.hidden_size, p.intermediate_size)
        self.up_proj = linear(p.hidden_size, p.intermediate_size)
        self.down_proj = linear(p.intermediate_size, p.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP on a residual stream."""

    def __init__(self, p: TowerParams) -> None:
        super().__init__()
        self.self_attn = Attention(p)
        self.mlp = Mlp(p)
        self.input_layernorm = Norm(p.hidden_size, p.eps)
        self.post_attention_layernorm = Norm(p.hidden_size, p.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, allowed: Tensor, alive: Tensor) -> Tensor:
        """See `Attention`."""
        x = x + self.self_attn(self.input_layernorm(x).to(x.dtype), cos, sin, allowed, alive)
        return x + self.mlp(self.post_attention_layernorm(x).to(x.dtype))


class Tower(nn.Module):
    """Embedding and layers, up to the last tap."""

    frequencies: Tensor

    def __init__(self, p: TowerParams) -> None:
        super().__init__()
        self.p = p
        self.embed_tokens = nn.Embedding(p.vocab_size, p.hidden_size)
        self.layers = nn.ModuleList(Layer(p) for _ in range(p.layers))
        exponents = torch.arange(0, p.head_dim, 2, dtype=torch.float32) / p.head_dim
        self.register_buffer("frequencies", 1.0 / p.theta**exponents, persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids [B, T] int64, mask [B, T] int64 (1 real, 0 padding) -> text [B, T, K C] float32."""
        x, places = self.embed_tokens(ids), torch.arange(ids.shape[1])
        turns = self._places(places, mask).float()[..., None] * self.frequencies
        real = mask > 0
        alive = mask.cumsum(1) > 0
        before = places[None] <= places[:, None]
        self_alone = (places[None] == places[:, None]) & ~alive[:, :, None]
        allowed = ((before & real[:, None]) | self_alone)[:, None]
        keep = alive[..., None].to(x.dtype)
        found = []
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, turns.cos(), turns.sin(), allowed, keep)
            if number in self.p.taps:
                found.append(x)
        return torch.cat(found, dim=-1).float()

    def _places(self, counted: Tensor, mask: Tensor) -> Tensor:
        """Where tokens stand: [T], or [B, 1, T] where padding stands elsewhere than it is counted to."""
        if self.p.pad_place is None:
            return counted
        return torch.where(mask > 0, counted, self.p.pad_place)[:, None]
