"""The text stage: the language model of a member, tapped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.recipe import Key
from flux_trt.exporter.checkpoints.tokenizer import Chat, Padding
from flux_trt.exporter.families.language import Language
from flux_trt.exporter.families.stage import OF_TEXTS, Stage, Varying, f32
from flux_trt.exporter.families.tower import Tower, TowerParams, tower_params
from flux_trt.runtime.bundle.manifest import Tensor
from flux_trt.runtime.errors import CheckpointError

FRONT = re.compile(r"^(language_model\.model\.|model\.language_model\.|model\.)")
"""What stands before the language model's names."""
IGNORED = {
    r"(.*\.)?lm_head\.weight|(language_model\.)?model\.(language_model\.)?norm\.weight": "no word is guessed",
    r"(model\.)?(vision_tower|multi_modal_projector|visual)\..*": "prompts are text",
    r"tekken_model": "a tokenizer, in ComfyUI's form",
}
FP16 = (
    "the text encoder overflows in fp16: its taps are a language model's raw residual; use text=bf16 or fp32"
)


def tower_of(part: Part, language: Language) -> TowerParams:
    """The tower's shape: from its config, or of a single file from the tensors.

    A model of a published width is tapped where its family says. Of another width, which is no published
    member's, the taps lie at the same quarters of its depth.

    Raises:
        CheckpointError: something is missing, or the taps lie behind its last layer.
    """
    config = part.config.get("text_config") or part.config
    names = {FRONT.sub("", name) for name in part.tensors}
    try:
        config = config or _told(part, language)
        there, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
        taps = language.taps
        if width not in language.widths:
            taps = tuple(tap * there // language.layers for tap in taps)
        found = tower_params(config, any(name.endswith(".self_attn.q_norm.weight") for name in names), taps)
        found = replace(found, pad_place=language.pad_place)
    except (KeyError, TypeError, ValueError, IndexError) as fault:
        raise CheckpointError(f"the text encoder lacks {fault}; copy or download it again") from None
    if not all(first < second for first, second in pairwise((0, *taps))) or taps[-1] > there:
        raise CheckpointError(
            f"the text encoder has {there} layers and is read behind layer {taps[-1]}: it is cut short; "
            f"give a whole one, of {language.layers} layers, with --text-encoders"
        )
    return found


def _told(part: Part, language: Language) -> dict[str, Any]:
    """What the shapes tell; all else is as published."""
    shapes = {FRONT.sub("", name): info.shape for name, info in part.tensors.items()}
    first = "layers.0.self_attn."
    vocabulary, hidden = shapes["embed_tokens.weight"]
    head_dim = shapes.get(f"{first}q_norm.weight", (language.head_dim,))[0]
    numbers = {int(name.split(".")[1]) for name in shapes if name.startswith("layers.")}
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": max(numbers) + 1,
        "num_attention_heads": shapes[f"{first}q_proj.weight"][0] // head_dim,
        "num_key_value_heads": shapes[f"{first}k_proj.weight"][0] // head_dim,
        "head_dim": head_dim,
        "rms_norm_eps": language.eps,
        "rope_theta": language.theta,
    }


def text_stage(part: Part, language: Language) -> Stage:
    """Prompts to the taps of a language model; what lies behind the last one is not even read."""
    p = tower_of(part, language)
    behind = {name for name in part.tensors if _layer(name) >= p.layers}
    tensors = {name: info for name, info in part.tensors.items() if name not in behind}
    tapped = {tap - 1 for tap in p.taps}
    return Stage(
        name="text",
        part="text",
        build=partial(Tower, p),
        tensors=tensors,
        recipes={FRONT.sub("", name): Key(name) for name in tensors},
        inputs=[Tensor(name=name, dtype="int64", dims=["batch", "text"]) for name in ("ids", "mask")],
        outputs=[f32("text", "batch", "text", p.width)],
        dims={"batch": Varying(example=2), "text": Varying(example=6)},
        config=vars(p),
        runs="prompt",
        blocks=("layers",),
        # What a tapped layer writes goes to the transformer as it is, so it is not rounded to fp8.
        fp8_layers=tuple(f"layers.{i}." for i in range(p.layers) if i not in tapped),
        in_fp8=True,
        safer=OF_TEXTS,
        refuses={"fp16": FP16},
    )


def _layer(name: str) -> int:
    """The number of the layer that a tensor belongs to; -1 for none."""
    found = re.match(r"layers\.(\d+)\.", FRONT.sub("", name))
    return int(found[1]) if found else -1


def padding_of(language: Language) -> Padding:
    """How prompts are dressed, filled up and cut."""

    def messages(prompt: str) -> list[Mapping[str, Any]]:
        if not language.system:
            return [{"role": "user", "content": prompt}]
        said = (("system", language.system), ("user", prompt))
        return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]

    chat = Chat(
        messages=messages,
        options=language.options,
        prefix=language.prefix,
        suffix=language.suffix,
        marks=language.marks,
        without=language.without,
    )
    return Padding(
        language.length, token=language.pad, side=language.side, chat=chat, multiple=language.multiple
    )
