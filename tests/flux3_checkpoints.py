"""Small FLUX.3 checkpoints with seeded random weights: nothing in them has a neutral value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Flux3Transformer2DModel
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.flux3 import Flux3AutoBlocks, Flux3DistilledAutoBlocks
from flux2_checkpoints import redraw, tokenizer, vae
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

KINDS = ("base", "distilled")
TAPS = tuple(range(1, 9))
LENGTH = 400
SHORT = ("a red circle", "two green squares, side by side")
LONG = (SHORT[0], f"two green squares, side by side {'and a story about each of them ' * 4}")
"""Of 80 and of 160 tokens or more."""


class Processor:
    """What the pipeline calls of Qwen3VLProcessor, which needs torchvision for its pictures."""

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        self.tokenizer = words

    def apply_chat_template(self, messages: Any, **asked: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, **asked)


def words() -> PreTrainedTokenizerFast:
    """Bytes and signs, with Qwen's template."""
    found = tokenizer("klein", "right")
    found.model_max_length = LENGTH
    return found


def text_encoder(hidden: int = 32, layers: int = 9) -> nn.Module:
    """A language model of 9 layers, of which the first eight are tapped; of 18 it is every second one."""
    text = {
        "vocab_size": 300,
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": hidden,
    }
    config = Qwen3VLConfig(
        text_config=text, vision_config={**vision, "deepstack_visual_indexes": [0]}, tie_word_embeddings=True
    )
    return Qwen3VLForConditionalGeneration(config)


def transformer(flow_map: bool, context: int = 256, **more: Any) -> nn.Module:
    asked = {"num_layers": 2, "num_single_layers": 3, **more}
    return Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=context,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=flow_map,
        **asked,
    )


def parts(kind: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    """All that a pipeline is made of."""
    torch.manual_seed(seed)
    made = {"transformer": transformer(kind == "distilled"), "vae": vae(), "text_encoder": text_encoder()}
    return {**{name: redraw(each) for name, each in (made | more).items()}, "tokenizer": words()}


def pipeline(kind: str, found: dict[str, Any], guidance: float | None = None) -> Any:
    """diffusers' modular pipeline of the parts, without the prompt upsampler, a model of its own."""
    blocks = Flux3AutoBlocks() if kind == "base" else Flux3DistilledAutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")
    made = blocks.init_pipeline()
    made.update_components(**{**found, "tokenizer": Processor(found["tokenizer"])})
    if guidance is not None:
        made.update_components(guider=ClassifierFreeGuidance(guidance_scale=guidance))
    made.set_progress_bar_config(disable=True)
    return made


def painted(
    kind: str,
    found: dict[str, Any],
    prompts: tuple[str, ...],
    seed: int,
    guidance: float | None = None,
    **asked: Any,
) -> list[np.ndarray]:
    """The pipeline's pictures: one call for each prompt, as it takes no more, each with a seed of its own."""
    pipe = pipeline(kind, found, guidance)
    pictures: list[Image.Image] = []
    for k, prompt in enumerate(prompts):
        with torch.no_grad():
            state = pipe(
                prompt=prompt,
                generator=torch.Generator().manual_seed(seed + k),
                text_encoder_out_layers=TAPS,
                output_type="pil",
                **asked,
            )
        pictures += state.get("images")
    return [np.asarray(each) for each in pictures]


def save(kind: str, found: dict[str, Any], folder: Path) -> Path:
    """A folder as diffusers' modular pipelines have it."""
    for name in ("transformer", "vae", "text_encoder", "tokenizer"):
        found[name].save_pretrained(folder / name)
    blocks = "Flux3AutoBlocks" if kind == "base" else "Flux3DistilledAutoBlocks"
    pipe = "Flux3ModularPipeline" if kind == "base" else "Flux3DistilledModularPipeline"
    index = {"_blocks_class_name": blocks, "_class_name": pipe, "_diffusers_version": "0.42.1"}
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    return folder


def write(kind: str, folder: Path, **more: Any) -> Path:
    """A whole one."""
    return save(kind, parts(kind, **more), folder)
