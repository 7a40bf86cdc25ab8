"""CLIP and T5 for tracing: transformers' own modules with one input, one output and no attention mask.

FLUX runs both encoders without a mask: padding is text like any other (diffusers FluxPipeline).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel


class Clip(CLIPTextModel):
    """CLIP's text model, pooled at the end token."""

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, 77] int64 -> pooled [B, V] float32."""
        return super().forward(ids).pooler_output.float()


class T5(T5EncoderModel):
    """T5's encoder, last hidden state."""

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] int64 -> text [B, T, C] float32."""
        return super().forward(ids).last_hidden_state.float()


def clip(config: Mapping[str, Any]) -> Clip:
    """CLIP from a transformers config; eager attention keeps its softmax in float32."""
    return Clip(CLIPTextConfig(**config, attn_implementation="eager"))


def t5(config: Mapping[str, Any]) -> T5:
    """T5 from a transformers config; its SDPA attention cannot be traced with a varying batch."""
    return T5(T5Config(**config, attn_implementation="eager"))
