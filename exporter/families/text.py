"""CLIP and T5 for tracing: transformers' own modules with one input, one output and no attention mask.

FLUX runs both encoders without a mask: padding is text like any other (diffusers FluxPipeline).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.recipe import Key, Recipe
from flux_trt.exporter.families.lora_oracle import MERGED, with_loras
from flux_trt.exporter.families.oracle import BATCH, TEXT, Case, Values, filled, opened
from flux_trt.exporter.families.stage import OF_TEXTS, Stage, Varying, f32
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import CheckpointError

CLIP_IGNORED = {
    r"(text_model\.)?embeddings\.position_ids": "it counts from 0",
    r"text_projection\.weight|logit_scale": "the pooled text is used as it is",
}
HEAD = 64
"""Channels of one of CLIP's attention heads."""
NARROWEST = 512
"""Width of the smallest published CLIP."""
T5_IGNORED = {
    r"decoder\..*|lm_head\.weight": "only the encoder is used",
    r"logit_scale": "a leftover of ComfyUI's files",
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


def clip_config(part: Part) -> Mapping[str, Any]:
    """CLIP's config: its own, or of a single file what the shapes tell.

    The heads of every published CLIP have 64 channels, which no shape tells; the end token is then the one
    with the highest id, as in the published config.

    Raises:
        CheckpointError: a single file of a width that no published CLIP has.
    """
    return part.config or _told("clip", part, _clip_from_tensors)


def _clip_from_tensors(part: Part) -> dict[str, Any]:
    found = {name.removeprefix("text_model."): info.shape for name, info in part.tensors.items()}
    vocabulary, hidden = found["embeddings.token_embedding.weight"]
    if hidden < NARROWEST:
        raise CheckpointError(
            f"clip has a width of {hidden}, as no published one, and its file does not tell its heads; "
            "give the folder with its config.json with --clip"
        )
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": found["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(found, "encoder.layers."),
        "num_attention_heads": hidden // HEAD,
        "max_position_embeddings": found["embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 2,
    }


def t5_config(part: Part) -> Mapping[str, Any]:
    """T5's config: its own, or of a single file what the shapes tell; all else is that of T5 v1.1."""
    return part.config or _told("t5", part, _t5_from_tensors)


def _t5_from_tensors(part: Part) -> dict[str, Any]:
    found = {name: info.shape for name, info in part.tensors.items()}
    first = "encoder.block.0.layer."
    buckets, heads = found[f"{first}0.SelfAttention.relative_attention_bias.weight"]
    embedding = found.get("shared.weight") or found["encoder.embed_tokens.weight"]
    return {
        "vocab_size": embedding[0],
        "d_model": embedding[1],
        "d_kv": found[f"{first}0.SelfAttention.q.weight"][0] // heads,
        "d_ff": found[f"{first}1.DenseReluDense.wi_0.weight"][0],
        "num_layers": _count(found, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
    }


def _told(name: str, part: Part, read: Callable[[Part], dict[str, Any]]) -> dict[str, Any]:
    """A config that the shapes tell.

    Raises:
        CheckpointError: a tensor that tells some of it is missing or misshapen.
    """
    try:
        return read(part)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as fault:
        raise CheckpointError(f"the {name} file lacks {fault}; copy or download it again") from None


def _count(names: Iterable[str], blocks: str) -> int:
    """How many blocks there are, by the highest number: a gap is found as missing tensors."""
    return 1 + max(int(name.removeprefix(blocks).split(".")[0]) for name in names if name.startswith(blocks))


def clip_stage(part: Part) -> Stage:
    """CLIP's pooled text, of 77 ids."""
    config = clip_config(part)
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
    config = t5_config(part)
    return Stage(
        name="t5",
        part="t5",
        build=partial(t5, config),
        tensors=part.tensors,
        recipes=text_encoder(part.tensors),
        inputs=[_ids("batch", "text")],
        outputs=[f32("text", "batch", "text", config["d_model"])],
        dims={"batch": Varying(example=2), "text": Varying(example=6)},
        config=config,
        runs="prompt",
        blocks=("encoder.block",),
        fp8_layers=("encoder.block.",),
        in_fp8=True,
        safer=OF_TEXTS,
        refuses={"fp16": "T5 overflows in fp16 and its text turns into nan; use t5=bf16 or t5=fp32"},
    )


def layers(name: str, names: Iterable[str]) -> int:
    """How many layers a CLIP or blocks a T5 has."""
    inside = [each.removeprefix("text_model.") for each in names]
    return _count(inside, {"clip": "encoder.layers.", "t5": "encoder.block."}[name])


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
    config = clip_config(part)
    model, oracle = _clip_model(part)
    length, vocabulary = config["max_position_embeddings"], config["vocab_size"]
    ids = torch.randint(vocabulary // 2, (BATCH, length))
    ids[:, length // 3] = config.get("eos_token_id", 2) if config.get("eos_token_id") != 2 else vocabulary - 1
    return Case({"ids": ids}, {"pooled": model(ids).pooler_output}, oracle)


def _clip_model(part: Part) -> tuple[CLIPTextModel, str]:
    def of_tensors(part: Part) -> tuple[CLIPTextModel, str]:
        config = CLIPTextConfig(**clip_config(part))
        return opened(
            CLIPTextModel, part, "transformers", lambda: filled(CLIPTextModel(config), _state(part))
        )

    if part.plain is None:
        return of_tensors(part)
    return with_loras("clip", part, of_tensors, of_tensors, lambda term: [term.parameter.rpartition(".")[0]])


def t5_case(part: Part) -> Case:
    """transformers' T5EncoderModel."""
    config = t5_config(part)
    model, oracle = opened(
        T5EncoderModel, part, "transformers", lambda: filled(T5EncoderModel(T5Config(**config)), _state(part))
    )
    ids = torch.randint(config["vocab_size"], (BATCH, TEXT))
    if part.loras:
        oracle += f", {MERGED}"
    return Case({"ids": ids}, {"text": model(ids).last_hidden_state}, oracle)


def _state(part: Part) -> Values:
    return {name: recipe.load(part.tensors) for name, recipe in text_encoder(part.tensors).items()}
