"""The exporter at FLUX.2's full sizes: klein 4B, klein 9B and dev, from BFL-named files in bf16.

    python benchmarks/full_size_flux2.py [--out benchmarks/results] [--members klein-4b,klein-9b,dev]

Text, conditioner and denoiser; `full_size_sparse` says how.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from full_size_sparse import Shapes, run, write_sparse

SIZES = {"klein-4b": (24, 5, 20, 7680), "klein-9b": (32, 8, 24, 12288), "dev": (48, 8, 48, 15360)}
"""Heads, double and single blocks, text channels."""
QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "attention_bias": False,
    "use_sliding_window": False,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "klein-4b": {**QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    "klein-9b": {**QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    "dev": {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {
            "model_type": "mistral",
            "vocab_size": 131072,
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e9,
            "sliding_window": None,
        },
    },
}


def transformer(member: str, depth: tuple[int, int] | None = None) -> Shapes:
    """Names and shapes of a member's transformer, under Black Forest Labs' names.

    Args:
        member: of the family.
        depth: double and single blocks, instead of all.
    """
    import torch
    from diffusers import Flux2Transformer2DModel

    from flux_trt.exporter.families.flux2.names import transformer_from_diffusers

    heads, double, single, text = SIZES[member]
    double, single = depth or (double, single)
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            num_attention_heads=heads,
            num_layers=double,
            num_single_layers=single,
            joint_attention_dim=text,
            guidance_embeds=member == "dev",
        )
    theirs = model.state_dict()
    recipes = transformer_from_diffusers(double, single, member == "dev")
    return {
        ours: tuple(recipe.make(*(theirs[name] for name in recipe.names)).shape)
        for ours, recipe in recipes.items()
    }


def encoder(member: str) -> Shapes:
    """Names and shapes of a member's language model as transformers saves it; of Mistral without its eyes."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config = ENCODERS[member]
    with torch.device("meta"):
        if "text_config" in config:
            model = MistralForCausalLM(MistralConfig(**config["text_config"]))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(**config))
    before = "language_model." if "text_config" in config else ""
    names = {f"{before}{name}": tuple(value.shape) for name, value in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        del names["lm_head.weight"]
    return names


def write_checkpoint(member: str, folder: Path) -> dict[str, int]:
    """The transformer's file and the encoder's folder; their numbers of parameters."""
    place = folder / "text_encoder"
    found = {
        "transformer": write_sparse(folder / f"flux-2-{member}.safetensors", transformer(member)),
        "text": write_sparse(place / "model.safetensors", encoder(member)),
    }
    (place / "config.json").write_text(json.dumps(ENCODERS[member]))
    return found


if __name__ == "__main__":
    run(__file__, __doc__, tuple(SIZES), write_checkpoint, ("text", "conditioner", "denoiser"))
