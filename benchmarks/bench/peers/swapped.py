"""FluxPipeline's four networks, each in the place of a function that another runtime made of it.

The loop, the scheduler, the tokenizers and the packing stay diffusers', in torch. A module is converted for
the job's shapes: batch, size and text length are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from flux_trt.bench.job import Job

Function = Callable[..., Tensor]
Convert = Callable[[nn.Module, Sequence[Tensor], str], Function]
"""A module of positional tensors with one result, an example of its inputs, and the network's name."""


class Clip(nn.Module):
    """Ids to the pooled vector."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        """[B, 77] -> [B, V]."""
        return self.inner(ids).pooler_output


class T5(nn.Module):
    """Ids to the text."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, C]."""
        return self.inner(ids)[0]


class Transformer(nn.Module):
    """FluxTransformer2DModel with positional inputs."""

    def __init__(self, inner: nn.Module, guided: bool) -> None:
        super().__init__()
        self.inner, self.guided = inner, guided

    def forward(
        self, latents: Tensor, text: Tensor, pooled: Tensor, timestep: Tensor, *rest: Tensor
    ) -> Tensor:
        """Velocity [B, L, C]; `rest` is img_ids, txt_ids and, where the model has it, guidance."""
        return self.inner(
            hidden_states=latents,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep,
            img_ids=rest[0],
            txt_ids=rest[1],
            guidance=rest[2] if self.guided else None,
            return_dict=False,
        )[0]


class Decoder(nn.Module):
    """The VAE's decoder."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W]."""
        decoded: tuple[Tensor] = self.inner.decode(latents, return_dict=False)
        return decoded[0]


class StandIn(nn.Module):
    """What FluxPipeline looks at of a network, and a call in its place."""

    def __init__(self, config: Any, call: Callable[..., Any]) -> None:
        super().__init__()
        self.config, self.call = config, call
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the network."""
        return self.call(*args, **kwargs)

    def cache_context(self, _: str) -> Any:
        """diffusers' step caches are off."""
        return nullcontext()

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """As AutoencoderKL."""
        return (self.call(latents),)


def swap(pipe: Any, job: Job, convert: Convert) -> None:
    """Put converted functions in the place of the pipeline's networks."""
    B, T = job.batch, job.text_tokens
    clip, t5, transformer, vae = pipe.text_encoder, pipe.text_encoder_2, pipe.transformer, pipe.vae
    guided = bool(transformer.config.guidance_embeds)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    h, w = job.height // factor, job.width // factor
    L, C = h * w // 4, transformer.config.in_channels
    ids = torch.ones(B, clip.config.max_position_embeddings, dtype=torch.long)
    rest = [torch.zeros(L, 3), torch.zeros(T, 3), *([torch.ones(B)] if guided else [])]
    text = torch.randn(B, T, transformer.config.joint_attention_dim)
    pooled = torch.randn(B, transformer.config.pooled_projection_dim)
    with torch.no_grad():
        run_clip = convert(Clip(clip).eval(), [ids], "clip")
        run_t5 = convert(T5(t5).eval(), [torch.ones(B, T, dtype=torch.long)], "t5")
        run_transformer = convert(
            Transformer(transformer, guided).eval(),
            [torch.randn(B, L, C), text, pooled, torch.ones(B), *rest],
            "transformer",
        )
        run_decoder = convert(Decoder(vae).eval(), [torch.randn(B, vae.config.latent_channels, h, w)], "vae")

    def call(**given: Any) -> tuple[Tensor]:
        names = ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids"]
        names += ["txt_ids", "guidance"] if guided else ["txt_ids"]
        return (run_transformer(*(given[name].float() for name in names)),)

    stand_ins = {
        "text_encoder": StandIn(clip.config, lambda ids, **_: SimpleNamespace(pooler_output=run_clip(ids))),
        "text_encoder_2": StandIn(t5.config, lambda ids, **_: (run_t5(ids),)),
        "transformer": StandIn(transformer.config, call),
        "vae": StandIn(vae.config, run_decoder),
    }
    for name, stand_in in stand_ins.items():
        setattr(pipe, name, stand_in)
