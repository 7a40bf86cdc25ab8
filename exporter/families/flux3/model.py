"""The FLUX.3 transformer, written once for export and cut where time ends.

Black Forest Labs' names throughout, so that the parameters of the four modules together are exactly the
tensors of a BFL checkpoint. Picture, reference pictures and text first go through blocks of their own, in
which none sees another, then through blocks that all of them share; every block has attention and MLP side
by side. Text and reference pictures are modulated by time 0: what their own blocks make of them does not
change from step to step, but in a flow map, where the time that a step jumps to is added to all.

Every input and output is float32. Inside, matrix products have the weights' dtype; norms, softmax
statistics, rotation, modulation and the Euler step are float32. With float16 the residual stream is float32
too and every linear layer saturates at +-65504.

Shapes: B batch, T text tokens, L latent tokens, R tokens of reference pictures, N = T + L + R, S steps,
D hidden size, H heads, E head dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flux_trt.exporter.families.flux3.names import MODES
from flux_trt.exporter.families.flux3.params import Flux3Params
from flux_trt.exporter.families.layers import (
    TIME_CHANNELS,
    Linear,
    MLPEmbedder,
    QKNorm,
    attention,
    gated,
    modulate,
    plain,
    residual,
    stream,
    timestep_embedding,
)


class Modulation(nn.Module):
    """The rows of shift, scale and gate that all blocks of a kind are modulated by."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lin = plain(dim, 3 * dim)

    def forward(self, vec: Tensor) -> Tensor:
        """The conditioning vector, SiLU already applied: [S, D] -> [S, 3, D]."""
        return self.lin(vec).unflatten(-1, (3, -1)).float()


class Time(nn.Module):
    """All modulation, of every step: it depends on times only."""

    def __init__(self, params: Flux3Params) -> None:
        super().__init__()
        D = params.hidden_size
        self.time_in = MLPEmbedder(TIME_CHANNELS, D, bias=False)
        if params.flow_map:
            self.ref_time_in = MLPEmbedder(TIME_CHANNELS, D, bias=False)
        self.early_stream_modulations = nn.ModuleDict({mode: Modulation(D) for mode in (*MODES, "txt")})
        self.single_stream_modulations = nn.ModuleDict({mode: Modulation(D) for mode in (*MODES, "txt")})
        # BFL keeps the SiLU as the first of two; here it is applied once for all.
        last = nn.ModuleDict({"adaLN_modulation": nn.Sequential(nn.Identity(), plain(D, 2 * D))})
        self.final_layer = nn.ModuleDict({"image": last})

    def forward(self, timesteps: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that modulate everything.

        Args:
            timesteps: [S] sigmas, 1 (noise) to 0 (picture).
            targets: [S] the times that a flow map's steps jump to.

        Returns:
            modulation [S, 14, D], see `params.ROWS`; context_modulation and reference_modulation [S, 3, D],
            without `targets` [3, D].
        """
        vec, clean = self.time_in(timestep_embedding(timesteps)).float(), torch.zeros(1)
        still = self.time_in(timestep_embedding(clean)).float()
        if targets is not None:
            jump = self.ref_time_in(timestep_embedding(targets)).float()
            vec, still = vec + jump, still + jump
        vec, still = F.silu(vec), F.silu(still)
        early, single = self.early_stream_modulations, self.single_stream_modulations
        last = self.final_layer.get_submodule("image.adaLN_modulation")(vec).unflatten(-1, (2, -1)).float()
        kept = [single[mode](still).expand(vec.shape[0], -1, -1) for mode in ("txt", "image_cond")]
        rows = torch.cat([early["image"](vec), single["image"](vec), last, *kept], dim=1)
        context, reference = early["txt"](still), early["image_cond"](still)
        return (rows, context, reference) if targets is not None else (rows, context[0], reference[0])


class Block(nn.Module):
    """Attention and MLP side by side on the same modulated input."""

    def __init__(self, params: Flux3Params) -> None:
        super().__init__()
        D, inner = params.hidden_size, params.mlp_hidden_dim
        self.num_heads = params.num_heads
        self.q_proj, self.k_proj, self.v_proj = plain(D, D), plain(D, D), plain(D, D)
        self.norm = QKNorm(params.head_dim)
        self.attn_out = plain(D, D)
        self.mlp_in = plain(D, 2 * inner)
        self.mlp_out = plain(inner, D)

    def forward(self, y: Tensor, cos: Tensor, sin: Tensor, asking: slice = slice(None)) -> Tensor:
        """What the block adds to its input, without its gate.

        Args:
            y: [B, N, D] normed and modulated.
            cos, sin: [N, E / 2].
            asking: the tokens that it is wanted of.
        """
        q, k = self.norm.turned(self.q_proj(y), self.k_proj(y), self.num_heads, cos, sin)
        v = self.v_proj(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        attended = self.attn_out(attention(q[:, :, asking], k, v))
        return attended.float() + self.mlp_out(gated(self.mlp_in(y[:, asking]))).float()


def blocks(params: Flux3Params, count: int) -> nn.ModuleList:
    """So many blocks."""
    return nn.ModuleList(Block(params) for _ in range(count))


def through(stack: Iterable[nn.Module], x: Tensor, mod: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, N, D] with its modulation [B or 1, 3, D], rotations [N, E / 2], through blocks by itself."""
    shift, scale, gate = mod.split(1, dim=1)
    for block in stack:
        x = residual(x, gate, block(modulate(x, shift, scale), cos, sin))
    return x


class Part(NamedTuple):
    """One of those that share blocks."""

    x: Tensor
    """[B, length, D]."""
    mod: Tensor
    """[1, 3, D]."""


def shared(block: nn.Module, parts: Sequence[Part], cos: Tensor, sin: Tensor) -> list[Part]:
    """Text, picture and reference pictures through a block that attends all; each has rows of its own."""
    added = block(modulated(parts), cos, sin)
    found, start = [], 0
    for x, mod in parts:
        found.append(Part(residual(x, mod[:, 2:], added[:, start : start + x.shape[1]]), mod))
        start = start + x.shape[1]
    return found


def modulated(parts: Sequence[Part]) -> Tensor:
    """All tokens in one sequence, as a block takes them: [B, N, D]."""
    return torch.cat([modulate(x, mod[:, :1], mod[:, 1:2]) for x, mod in parts], dim=1)


class Context(nn.Module):
    """Text by itself: its own blocks."""

    def __init__(self, params: Flux3Params) -> None:
        super().__init__()
        self.txt_in = plain(params.context_in_dim, params.hidden_size)
        self.txt_mode_blocks = blocks(params, params.depth)

    def forward(self, text: Tensor, context_modulation: Tensor, text_cos: Tensor, text_sin: Tensor) -> Tensor:
        """What the shared blocks take of text.

        Args:
            text: [B, T, context_in_dim] the language model's taps, side by side.
            context_modulation: [3, D]; of a flow map [S, 3, D], for all steps at once.
            text_cos, text_sin: [T, E / 2].

        Returns:
            context [B, T, D], or [S, B, T, D].
        """
        x = self.txt_in(text).to(stream(self.txt_in))
        if context_modulation.dim() == 2:
            return through(self.txt_mode_blocks, x, context_modulation[None], text_cos, text_sin).float()
        S, (B, T, D) = context_modulation.shape[0], x.shape
        rows = context_modulation[:, None].expand(S, B, 3, D).reshape(S * B, 3, D)
        x = x[None].expand(S, B, T, D).reshape(S * B, T, D)
        return through(self.txt_mode_blocks, x, rows, text_cos, text_sin).float().reshape(S, B, T, D)


class References(nn.Module):
    """Reference pictures by themselves: their own blocks."""

    def __init__(self, params: Flux3Params) -> None:
        super().__init__()
        self.emb_in = nn.ModuleDict({"image_cond": plain(params.in_channels, params.hidden_size)})
        self.content_mode_blocks = nn.ModuleDict({"image_cond": blocks(params, params.depth)})

    def forward(self, latents: Tensor, cos: Tensor, sin: Tensor, reference_modulation: Tensor) -> Tensor:
        """What the shared blocks take of reference pictures.

        Args:
            latents: [B, R, in_channels] of all of them, one after another.
            cos, sin: [R, E / 2] their rotations.
            reference_modulation: [3, D] from `Time`; of a flow map this step's.

        Returns:
            references [B, R, D].
        """
        enter = cast(Linear, self.emb_in["image_cond"])
        x = enter(latents).to(stream(enter))
        stack = cast(nn.ModuleList, self.content_mode_blocks["image_cond"])
        return through(stack, x, reference_modulation[None], cos, sin).float()


class Denoiser(nn.Module):
    """The picture's own blocks, those that all share, and the Euler step."""

    def __init__(self, params: Flux3Params) -> None:
        super().__init__()
        D, K = params.hidden_size, params.in_channels
        self.emb_in = nn.ModuleDict({"image": plain(K, D)})
        self.content_mode_blocks = nn.ModuleDict({"image": blocks(params, params.depth)})
        self.single_blocks = blocks(params, params.depth_single_blocks)
        self.final_layer = nn.ModuleDict({"image": nn.ModuleDict({"linear": plain(D, K)})})

    def forward(
        self,
        latents: Tensor,
        dt: Tensor,
        context: Tensor,
        modulation: Tensor,
        cos: Tensor,
        sin: Tensor,
        references: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One Euler step of the rectified flow.

        Args:
            latents: [B, L, in_channels].
            dt: [B, L, 1] sigma_next - sigma.
            context: [B, T, D] from `Context`.
            modulation: [14, D] this step's row of what `Time` gives.
            cos, sin: [N, E / 2] the rotation of every token: text, picture, reference pictures.
            references: [B, R, D] from `References`; R may be 0.

        Returns:
            next_latents = latents + dt x velocity, and velocity, both [B, L, in_channels].
        """
        enter = cast(Linear, self.emb_in["image"])
        T, L, dtype = context.shape[1], latents.shape[1], stream(enter)
        early, single, last, txt, cond = modulation[None].split((3, 3, 2, 3, 3), dim=1)
        stack = cast(nn.ModuleList, self.content_mode_blocks["image"])
        img = through(stack, enter(latents).to(dtype), early, cos[T : T + L], sin[T : T + L])
        parts = [Part(context.to(dtype), txt), Part(img, single), Part(references.to(dtype), cond)]
        *before, final = self.single_blocks
        for block in before:
            parts = shared(block, parts, cos, sin)
        # Of what the last block would make of text and reference pictures nothing is used.
        added = final(modulated(parts), cos, sin, asking=slice(T, T + L))
        img = residual(parts[1].x, single[:, 2:], added)
        shift, scale = last.split(1, dim=1)
        velocity = self.final_layer.get_submodule("image.linear")(modulate(img, shift, scale)).float()
        return latents + dt * velocity, velocity
