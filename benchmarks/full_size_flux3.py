"""The exporter at FLUX.3's full size: Klein base and distilled, from BFL-named files in bf16.

    python benchmarks/full_size_flux3.py [--out benchmarks/results] [--members base,distilled]

All stages but the VAE's, without the vision tower and what is of training alone; `full_size_sparse` says how.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from full_size_flux2 import QWEN3
from full_size_sparse import Shapes, run, write_sparse

MEMBERS = ("base", "distilled")
STAGES = ("text", "time", "context", "references", "denoiser")
TEXT: dict[str, Any] = {
    **QWEN3,
    "model_type": "qwen3_vl_text",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "rope_theta": 5e6,
    "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    "tie_word_embeddings": True,
}
ENCODER: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "text_config": TEXT,
    "tie_word_embeddings": True,
}


def transformer(member: str) -> Shapes:
    """Names and shapes of a member's transformer, under Black Forest Labs' names."""
    import torch
    from diffusers import Flux3Transformer2DModel

    from flux_trt.exporter.families.flux3.names import transformer_from_diffusers

    with torch.device("meta"):
        model = Flux3Transformer2DModel(flow_map=member == "distilled")
    theirs, config = model.state_dict(), model.config
    recipes = transformer_from_diffusers(config.num_layers, config.num_single_layers, config.flow_map)
    return {
        ours: tuple(recipe.make(*(theirs[name] for name in recipe.names)).shape)
        for ours, recipe in recipes.items()
    }


def encoder() -> Shapes:
    """Names and shapes of Qwen3-VL-4B's language model as transformers saves it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**{**QWEN3, "hidden_size": 2560, "intermediate_size": 9728}))
    return {
        name.replace("model.", "model.language_model.", 1): tuple(value.shape)
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }


def write_checkpoint(member: str, folder: Path) -> dict[str, int]:
    """The transformer's file and the encoder's folder; their numbers of parameters."""
    place = folder / "text_encoder"
    found = {
        "transformer": write_sparse(folder / "model.safetensors", transformer(member)),
        "text": write_sparse(place / "model.safetensors", encoder()),
    }
    (place / "config.json").write_text(json.dumps(ENCODER))
    return found


if __name__ == "__main__":
    run(__file__, __doc__, MEMBERS, write_checkpoint, STAGES)
