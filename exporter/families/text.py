"""CLIP and T5 for tracing: transformers' own modules with one input, one output and no attention mask.

FLUX runs both encoders without a mask: padding is text like any other (diffusers FluxPipeline).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.recipe import Key, Recipe
from flux_trt.exporter.families.oracle import BATCH, TEXT, Case, Values, loaded
from flux_trt.exporter.families.stage import Stage, Varying, f32
from flux_trt.runtime.bundle import manifest

CLIP_IGNORED = {
    r"(text_model\.)?embeddings\.position_ids": "it counts from 0",
    r"text_projection\.weight|logit_scale": "the pooled text is used as it is",
}
T5_IGNORED = {
    r"decoder\..*|lm_head\.weight": "only the encoder is used",
    r"encoder\.embed_tokens\.weight|shared\.weight": "the embedding stands there twice",
}


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


def clip_stage(part: Part) -> Stage:
    """CLIP's pooled text, of 77 ids."""
    config = part.config
    return Stage(
        name="clip",
        part="clip",
        build=partial(clip, config),
        tensors=part.tensors,
        recipes=text_encoder(part.tensors),
        inputs=[_ids("batch", config["max_position_embeddings"])],
        outputs=[f32("pooled", "batch", config["hidden_size"])],
        dims={"batch": Varying(example=2)},
        config=config,
        runs="prompt",
    )


def t5_stage(part: Part) -> Stage:
    """T5's text, of any number of ids."""
    return Stage(
        name="t5",
        part="t5",
        build=partial(t5, part.config),
        tensors=part.tensors,
        recipes=text_encoder(part.tensors),
        inputs=[_ids("batch", "text")],
        outputs=[f32("text", "batch", "text", part.config["d_model"])],
        dims={"batch": Varying(example=2), "text": Varying(example=6)},
        config=part.config,
        runs="prompt",
        blocks=("encoder.block",),
        fp8_layers=("encoder.block.",),
        in_fp8=True,
        safer={"fp16": "fp32"},
        refuses={"fp16": "T5 overflows in fp16 and its text turns into nan; use t5=bf16 or t5=fp32"},
    )


def _ids(*dims: int | str) -> manifest.Tensor:
    return manifest.Tensor(name="ids", dtype="int64", dims=list(dims))


def text_encoder(names: Iterable[str]) -> dict[str, Recipe]:
    """CLIP's and T5's tensors under transformers' present names.

    transformers 5 dropped CLIP's `text_model.` prefix, checkpoints on the hub have it; T5 checkpoints name
    the embedding `shared.weight`, `encoder.embed_tokens.weight` or both.
    """
    recipes: dict[str, Recipe] = {}
    for name in names:
        recipes[name.removeprefix("text_model.")] = Key(name)
    shared, embed = "shared.weight", "encoder.embed_tokens.weight"
    for one, other in ((shared, embed), (embed, shared)):
        if one in recipes:
            recipes.setdefault(other, recipes[one])
    return recipes


def clip_case(part: Part) -> Case:
    """transformers' CLIPTextModel, on ids with an end token in the middle."""
    model = loaded(CLIPTextModel(CLIPTextConfig(**part.config)), _state(part))
    length, vocabulary = part.config["max_position_embeddings"], part.config["vocab_size"]
    ids = torch.randint(vocabulary // 2, (BATCH, length))
    ids[:, length // 3] = (
        part.config.get("eos_token_id", 2) if part.config.get("eos_token_id") != 2 else vocabulary - 1
    )
    return Case({"ids": ids}, {"pooled": model(ids).pooler_output})


def t5_case(part: Part) -> Case:
    """transformers' T5EncoderModel."""
    model = loaded(T5EncoderModel(T5Config(**part.config)), _state(part))
    ids = torch.randint(part.config["vocab_size"], (BATCH, TEXT))
    return Case({"ids": ids}, {"text": model(ids).last_hidden_state})


def _state(part: Part) -> Values:
    return {name: recipe.load(part.tensors) for name, recipe in text_encoder(part.tensors).items()}
