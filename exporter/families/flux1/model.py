"""The FLUX.1 transformer, written once for export and cut where time ends.

Black Forest Labs' names throughout (https://github.com/black-forest-labs/flux, src/flux/model.py and
modules/layers.py), so that the parameters of `Conditioner` and `Denoiser` together are exactly the tensors
of a BFL checkpoint. What depends on the step and the prompt alone is in the `Conditioner` and runs once per
picture; what depends on the picture is in the `Denoiser` and runs once per step.

Every input and output is float32. Inside, matrix products have the weights' dtype; norms, softmax
statistics, rotation, modulation and the Euler step are float32. With float16 the residual stream is float32
too and every linear layer saturates at +-65504, so that no activation of any size turns into inf or nan.

Shapes: B batch, T text tokens, L latent tokens, S steps, D hidden size, H heads, E head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flux_trt.exporter.families.flux1.params import FluxParams
from flux_trt.exporter.families.layers import (
    TIME_CHANNELS,
    Linear,
    MLPEmbedder,
    QKNorm,
    SelfAttention,
    attention,
    modulate,
    residual,
    split_heads,
    stream,
    timestep_embedding,
)


class Modulation(nn.Module):
    """The rows of shift, scale and gate that a stream of a block is modulated by."""

    def __init__(self, dim: int, rows: int) -> None:
        super().__init__()
        self.lin = Linear(dim, rows * dim)

    def forward(self, vec: Tensor) -> Tensor:
        """The conditioning vector, SiLU already applied: [S, B, D] -> [S, B, rows D]."""
        return self.lin(vec)


class Modulations(nn.ModuleDict):
    """The modulations of one block."""

    def forward(self, vec: Tensor) -> list[Tensor]:
        """[S, B, D] -> for every modulation [S, B, rows D]."""
        return [module(vec) for module in self.values()]


class Conditioner(nn.Module):
    """All of FLUX that does not see the picture, for every step at once."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        D = params.hidden_size
        self.time_in = MLPEmbedder(TIME_CHANNELS, D)
        self.vector_in = MLPEmbedder(params.vec_in_dim, D)
        if params.guidance_embed:
            self.guidance_in = MLPEmbedder(TIME_CHANNELS, D)
        self.txt_in = Linear(params.context_in_dim, D)
        self.double_blocks = nn.ModuleList(
            Modulations({"img_mod": Modulation(D, 6), "txt_mod": Modulation(D, 6)})
            for _ in range(params.depth)
        )
        self.single_blocks = nn.ModuleList(
            Modulations({"modulation": Modulation(D, 3)}) for _ in range(params.depth_single_blocks)
        )
        # BFL keeps the SiLU as the first of two; here it is applied once for all.
        self.final_layer = Modulations({"adaLN_modulation": nn.Sequential(nn.Identity(), Linear(D, 2 * D))})

    def forward(
        self, timesteps: Tensor, pooled: Tensor, text: Tensor, guidance: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Modulation of every block at every step, and the text in the transformer's width.

        Args:
            timesteps: [S] sigmas, 1 (noise) to 0 (picture).
            pooled: [B, vec_in_dim] CLIP's pooled output.
            text: [B, T, context_in_dim] T5's last hidden state.
            guidance: [B] distilled guidance, for the variants that embed it.

        Returns:
            modulation [S, B, M, D]: per double block 6 rows for img and 6 for txt, per single block 3, then
            the final layer's shift and scale; and context [B, T, D].
        """
        vec = self.vector_in(pooled).float()
        if guidance is not None:
            vec = vec + self.guidance_in(timestep_embedding(guidance)).float()
        vec = self.time_in(timestep_embedding(timesteps)).float()[:, None] + vec[None]
        vec = F.silu(vec)
        blocks = (*self.double_blocks, *self.single_blocks, self.final_layer)
        rows = [row.unflatten(-1, (-1, vec.shape[-1])) for block in blocks for row in block(vec)]
        return torch.cat(rows, dim=2).float(), self.txt_in(text).float()


class DoubleStreamBlock(nn.Module):
    """Picture and text each with weights of their own, meeting in one attention."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        self.params = params
        D, inner = params.hidden_size, params.mlp_hidden_dim
        self.img_attn = SelfAttention(D, params.head_dim)
        self.img_mlp = nn.Sequential(Linear(D, inner), nn.GELU(approximate="tanh"), Linear(inner, D))
        self.txt_attn = SelfAttention(D, params.head_dim)
        self.txt_mlp = nn.Sequential(Linear(D, inner), nn.GELU(approximate="tanh"), Linear(inner, D))

    def forward(
        self, img: Tensor, txt: Tensor, img_mod: Tensor, txt_mod: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """img [B, L, D], txt [B, T, D], each with its modulation [B, 6, D] -> the new img and txt."""
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = img_mod.split(1, dim=1)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = txt_mod.split(1, dim=1)

        img_qkv = self.img_attn.qkv(modulate(img, img_shift1, img_scale1))
        txt_qkv = self.txt_attn.qkv(modulate(txt, txt_shift1, txt_scale1))
        T = txt.shape[1]
        txt_heads = split_heads(txt_qkv, self.txt_attn.norm, self.params.num_heads, cos[:T], sin[:T])
        img_heads = split_heads(img_qkv, self.img_attn.norm, self.params.num_heads, cos[T:], sin[T:])
        joint = attention(*(torch.cat(pair, 2) for pair in zip(txt_heads, img_heads, strict=True)))
        txt_attn, img_attn = joint[:, :T], joint[:, T:]

        img = residual(img, img_gate1, self.img_attn.proj(img_attn))
        img = residual(img, img_gate2, self.img_mlp(modulate(img, img_shift2, img_scale2)))
        txt = residual(txt, txt_gate1, self.txt_attn.proj(txt_attn))
        txt = residual(txt, txt_gate2, self.txt_mlp(modulate(txt, txt_shift2, txt_scale2)))
        return img, txt


class SingleStreamBlock(nn.Module):
    """Picture and text as one sequence, attention and MLP side by side."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        self.params = params
        D, inner = params.hidden_size, params.mlp_hidden_dim
        self.linear1 = Linear(D, 3 * D + inner)
        self.linear2 = Linear(D + inner, D)
        self.norm = QKNorm(params.head_dim)

    def forward(self, x: Tensor, mod: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T + L, D] with its modulation [B, 3, D] -> the new x."""
        shift, scale, gate = mod.split(1, dim=1)
        qkv_mlp = self.linear1(modulate(x, shift, scale))
        attn = attention(*split_heads(qkv_mlp, self.norm, self.params.num_heads, cos, sin))
        mlp = F.gelu(qkv_mlp[..., 3 * self.params.hidden_size :], approximate="tanh")
        return residual(x, gate, self.linear2(attn, mlp))


class Denoiser(nn.Module):
    """All of FLUX that sees the picture, and the Euler step."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        self.params = params
        self.img_in = Linear(params.in_channels, params.hidden_size)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(params) for _ in range(params.depth))
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(params) for _ in range(params.depth_single_blocks)
        )
        self.final_layer = nn.ModuleDict({"linear": Linear(params.hidden_size, params.out_channels)})

    def forward(
        self,
        latents: Tensor,
        dt: Tensor,
        context: Tensor,
        modulation: Tensor,
        cos: Tensor,
        sin: Tensor,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One Euler step of the rectified flow.

        Args:
            latents: [B, L, out_channels]; reference pictures follow the target on the token axis.
            dt: [B, L, 1] sigma_next - sigma; 0 for tokens that stay as they are.
            context: [B, T, D] from the conditioner.
            modulation: [B, M, D] this step's row of the conditioner's output.
            cos, sin: [T + L, E / 2] the rotation of every token, text first.
            condition: [B, L, in_channels - out_channels] for Fill, Canny and Depth.

        Returns:
            next_latents = latents + dt x velocity, and velocity, both [B, L, out_channels].
        """
        img = latents if condition is None else torch.cat([latents, condition], dim=-1)
        dtype = stream(self.img_in)
        img, txt = self.img_in(img).to(dtype), context.to(dtype)
        rows = 12 * self.params.depth
        double, single = modulation[:, :rows], modulation[:, rows:]
        for i, block in enumerate(self.double_blocks):
            mod = double[:, 12 * i : 12 * i + 12]
            img, txt = block(img, txt, mod[:, :6], mod[:, 6:], cos, sin)
        x = torch.cat([txt, img], dim=1)
        for i, block in enumerate(self.single_blocks):
            x = block(x, single[:, 3 * i : 3 * i + 3], cos, sin)
        shift, scale = single[:, -2:].split(1, dim=1)
        img = x[:, txt.shape[1] :]
        velocity = self.final_layer["linear"](modulate(img, shift, scale)).float()
        return latents + dt * velocity, velocity
