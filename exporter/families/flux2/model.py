"""The FLUX.2 transformer, written once for export and cut where time ends.

Black Forest Labs' names throughout (https://github.com/black-forest-labs/flux2, src/flux2/model.py), so that
the parameters of `Conditioner` and `Denoiser` together are exactly the tensors of a BFL checkpoint. Beside
FLUX.1's: no bias, no pooled text, one modulation for all blocks of a kind, a gated MLP, four axes of
positions, of which text has one.

Every input and output is float32, but for keys and values of 16 bits, which are float16. Inside, matrix
products have the weights' dtype; norms, softmax statistics, rotation, modulation and the Euler step are
float32. With float16 the residual stream is float32 too and every linear layer saturates at +-65504.

Shapes: B batch, T text tokens, L latent tokens, R tokens of reference pictures, S steps, D hidden size,
H heads, E head dim, N blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flux_trt.exporter.families.flux2.params import Flux2Params
from flux_trt.exporter.families.layers import (
    TIME_CHANNELS,
    MLPEmbedder,
    QKNorm,
    SelfAttention,
    attention,
    gated,
    modulate,
    plain,
    residual,
    split_heads,
    stream,
    timestep_embedding,
)


class Modulation(nn.Module):
    """The rows of shift, scale and gate that all blocks of a kind are modulated by."""

    def __init__(self, dim: int, rows: int) -> None:
        super().__init__()
        self.lin = plain(dim, rows * dim)

    def forward(self, vec: Tensor) -> Tensor:
        """The conditioning vector, SiLU already applied: [..., D] -> [..., rows, D]."""
        return self.lin(vec).unflatten(-1, (-1, vec.shape[-1]))


class Conditioner(nn.Module):
    """All of FLUX.2 that does not see the picture, for every step at once."""

    def __init__(self, params: Flux2Params, references: bool = False) -> None:
        """`references`: also give the rows that reference pictures are modulated by."""
        super().__init__()
        D = params.hidden_size
        self.references = references
        self.time_in = MLPEmbedder(TIME_CHANNELS, D, bias=False)
        if params.guidance_embed:
            self.guidance_in = MLPEmbedder(TIME_CHANNELS, D, bias=False)
        self.txt_in = plain(params.context_in_dim, D)
        self.double_stream_modulation_img = Modulation(D, 6)
        self.double_stream_modulation_txt = Modulation(D, 6)
        self.single_stream_modulation = Modulation(D, 3)
        # BFL keeps the SiLU as the first of two; here it is applied once for all.
        self.final_layer = nn.ModuleDict({"adaLN_modulation": nn.Sequential(nn.Identity(), plain(D, 2 * D))})

    def forward(self, timesteps: Tensor, text: Tensor, guidance: Tensor | None = None) -> tuple[Tensor, ...]:
        """Modulation at every step, and the text in the transformer's width.

        Args:
            timesteps: [S] sigmas, 1 (noise) to 0 (picture).
            text: [B, T, context_in_dim] the language model's taps, side by side.
            guidance: [B] distilled guidance, for the member that embeds it.

        Returns:
            modulation [S, B, 17, D]: 6 rows for img, 6 for txt, 3 for single blocks, then the final layer's
            shift and scale; context [B, T, D]; and with `references` the 6 and 3 rows of noise level 0,
            [9, D].
        """
        D = text.shape[0], self.txt_in.out_features
        vec = self.time_in(timestep_embedding(timesteps)).float()[:, None].expand(-1, *D)
        if guidance is not None:
            vec = vec + self.guidance_in(timestep_embedding(guidance)).float()
        vec = F.silu(vec)
        img, single = self.double_stream_modulation_img, self.single_stream_modulation
        final = self.final_layer["adaLN_modulation"](vec).unflatten(-1, (2, -1))
        rows = [img(vec), self.double_stream_modulation_txt(vec), single(vec), final]
        found = torch.cat(rows, dim=2).float(), self.txt_in(text).float()
        if not self.references:
            return found
        clean = F.silu(self.time_in(timestep_embedding(torch.zeros(1))).float())[0]
        return *found, torch.cat([img(clean), single(clean)]).float()


class Gated(nn.Module):
    """`gated` between two layers of an MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2 C] -> [..., C]."""
        return gated(x)


def mlp(params: Flux2Params) -> nn.Sequential:
    """Linear, SwiGLU, linear."""
    D, inner = params.hidden_size, params.mlp_hidden_dim
    return nn.Sequential(plain(D, 2 * inner), Gated(), plain(inner, D))


class DoubleStreamBlock(nn.Module):
    """Picture and text each with weights of their own, meeting in one attention."""

    def __init__(self, params: Flux2Params) -> None:
        super().__init__()
        self.params = params
        self.img_attn = SelfAttention(params.hidden_size, params.head_dim, bias=False)
        self.img_mlp = mlp(params)
        self.txt_attn = SelfAttention(params.hidden_size, params.head_dim, bias=False)
        self.txt_mlp = mlp(params)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        img_mod: Tensor,
        txt_mod: Tensor,
        cos: Tensor,
        sin: Tensor,
        *known: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """img [B, L, D], txt [B, T, D], each with its modulation [B, 6, D] -> the new img and txt.

        `known`: nothing, or keys and values [B, H, R, E] that are attended too.
        """
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = img_mod.split(1, dim=1)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = txt_mod.split(1, dim=1)

        img_qkv = self.img_attn.qkv(modulate(img, img_shift1, img_scale1))
        txt_qkv = self.txt_attn.qkv(modulate(txt, txt_shift1, txt_scale1))
        T = txt.shape[1]
        txt_heads = split_heads(txt_qkv, self.txt_attn.norm, self.params.num_heads, cos[:T], sin[:T])
        img_heads = split_heads(img_qkv, self.img_attn.norm, self.params.num_heads, cos[T:], sin[T:])
        q, k, v = (torch.cat(pair, 2) for pair in zip(txt_heads, img_heads, strict=True))
        joint = attention(q, *beside(k, v, *known))
        txt_attn, img_attn = joint[:, :T], joint[:, T:]

        img = residual(img, img_gate1, self.img_attn.proj(img_attn))
        img = residual(img, img_gate2, self.img_mlp(modulate(img, img_shift2, img_scale2)))
        txt = residual(txt, txt_gate1, self.txt_attn.proj(txt_attn))
        txt = residual(txt, txt_gate2, self.txt_mlp(modulate(txt, txt_shift2, txt_scale2)))
        return img, txt

    def alone(self, img: Tensor, mod: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The picture's stream without text: the new img, and the keys and values of its attention."""
        shift1, scale1, gate1, shift2, scale2, gate2 = mod.split(1, dim=1)
        qkv = self.img_attn.qkv(modulate(img, shift1, scale1))
        q, k, v = split_heads(qkv, self.img_attn.norm, self.params.num_heads, cos, sin)
        img = residual(img, gate1, self.img_attn.proj(attention(q, k, v)))
        return residual(img, gate2, self.img_mlp(modulate(img, shift2, scale2))), k, v


class SingleStreamBlock(nn.Module):
    """Picture and text as one sequence, attention and MLP side by side."""

    def __init__(self, params: Flux2Params) -> None:
        super().__init__()
        self.params = params
        D, inner = params.hidden_size, params.mlp_hidden_dim
        self.linear1 = plain(D, 3 * D + 2 * inner)
        self.linear2 = plain(D + inner, D)
        self.norm = QKNorm(params.head_dim)

    def forward(self, x: Tensor, mod: Tensor, cos: Tensor, sin: Tensor, *known: Tensor) -> Tensor:
        """x [B, T + L, D] with its modulation [B, 3, D] -> the new x; `known` as in a double block."""
        return self.alone(x, mod, cos, sin, *known)[0]

    def alone(
        self, x: Tensor, mod: Tensor, cos: Tensor, sin: Tensor, *known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The new x, and the keys and values of its attention."""
        shift, scale, gate = mod.split(1, dim=1)
        qkv_mlp = self.linear1(modulate(x, shift, scale))
        q, k, v = split_heads(qkv_mlp, self.norm, self.params.num_heads, cos, sin)
        attn = attention(q, *beside(k, v, *known))
        inner = gated(qkv_mlp[..., 3 * self.params.hidden_size :])
        return residual(x, gate, self.linear2(attn, inner)), k, v


def seen(block: SingleStreamBlock, x: Tensor, mod: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values of a single block's attention, and nothing else of it."""
    shift, scale, _ = mod.split(1, dim=1)
    _, k, v = split_heads(
        block.linear1(modulate(x, shift, scale)), block.norm, block.params.num_heads, cos, sin
    )
    return k, v


def beside(k: Tensor, v: Tensor, *known: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, L, E], with those that are known already behind them."""
    if not known:
        return k, v
    return torch.cat([k, known[0].to(k.dtype)], 2), torch.cat([v, known[1].to(v.dtype)], 2)


def carried(x: Tensor) -> Tensor:
    """Keys or values as they pass to the denoiser: float16 for 16 bits, saturated."""
    return x if x.dtype == torch.float32 else x.clamp(-65504.0, 65504.0).to(torch.float16)


class Denoiser(nn.Module):
    """All of FLUX.2 that sees the picture, and the Euler step."""

    def __init__(self, params: Flux2Params) -> None:
        super().__init__()
        self.params = params
        self.img_in = plain(params.in_channels, params.hidden_size)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(params) for _ in range(params.depth))
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(params) for _ in range(params.depth_single_blocks)
        )
        self.final_layer = nn.ModuleDict({"linear": plain(params.hidden_size, params.in_channels)})

    def forward(
        self,
        latents: Tensor,
        dt: Tensor,
        context: Tensor,
        modulation: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One Euler step of the rectified flow.

        Args:
            latents: [B, L, in_channels]; reference pictures follow the target on the token axis.
            dt: [B, L, 1] sigma_next - sigma; 0 for tokens that stay as they are.
            context: [B, T, D] from the conditioner.
            modulation: [B, 17, D] this step's row of the conditioner's output.
            cos, sin: [T + L, E / 2] the rotation of every token, text first.
            keys, values: [B, N, H, R, E] of reference pictures, from `References`.

        Returns:
            next_latents = latents + dt x velocity, and velocity, both [B, L, in_channels].
        """
        dtype = stream(self.img_in)
        img, txt = self.img_in(latents).to(dtype), context.to(dtype)
        img_mod, txt_mod, single_mod = modulation[:, :6], modulation[:, 6:12], modulation[:, 12:15]
        known: list[tuple[Tensor, ...]] = [()] * self.params.blocks
        if keys is not None and values is not None:
            known = [(keys[:, i], values[:, i]) for i in range(self.params.blocks)]
        for i, block in enumerate(self.double_blocks):
            img, txt = block(img, txt, img_mod, txt_mod, cos, sin, *known[i])
        x = torch.cat([txt, img], dim=1)
        for i, block in enumerate(self.single_blocks, self.params.depth):
            x = block(x, single_mod, cos, sin, *known[i])
        shift, scale = modulation[:, 15:17].split(1, dim=1)
        img = x[:, txt.shape[1] :]
        velocity = self.final_layer["linear"](modulate(img, shift, scale)).float()
        return latents + dt * velocity, velocity


class References(nn.Module):
    """Reference pictures that see only each other, at noise level 0: what every step attends of them.

    The parameters are the denoiser's own, but for the text's and the last layers'.
    """

    def __init__(self, params: Flux2Params) -> None:
        super().__init__()
        self.params = params
        self.img_in = plain(params.in_channels, params.hidden_size)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(params) for _ in range(params.depth))
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(params) for _ in range(params.depth_single_blocks)
        )

    def forward(self, latents: Tensor, cos: Tensor, sin: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all reference pictures in every block.

        Args:
            latents: [B, R, in_channels] of all reference pictures, one after another.
            cos, sin: [R, E / 2] their rotations.
            modulation: [9, D] from the conditioner.

        Returns:
            keys, normed and rotated, and values, both [B, N, H, R, E]: double blocks first.
        """
        x = self.img_in(latents).to(stream(self.img_in))
        found = []
        for block in self.double_blocks:
            assert isinstance(block, DoubleStreamBlock)
            x, *kept = block.alone(x, modulation[None, :6], cos, sin)
            found.append(kept)
        *blocks, last = self.single_blocks
        for block in blocks:
            assert isinstance(block, SingleStreamBlock)
            x, *kept = block.alone(x, modulation[None, 6:], cos, sin)
            found.append(kept)
        assert isinstance(last, SingleStreamBlock)
        found.append([*seen(last, x, modulation[None, 6:], cos, sin)])
        keys, values = (carried(torch.stack(each, 1)) for each in zip(*found, strict=True))
        return keys, values
