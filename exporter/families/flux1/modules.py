"""Every module of FLUX.1 that a LoRA may change, under the names that files have for it.

BFL's and diffusers' come from `names`, so that rows and halves are those of the weights; XLabs' are its own.
Sources: XLabs-AI/x-flux src/flux/modules/layers.py; transformers' CLIPTextModel and T5EncoderModel.
"""

from __future__ import annotations

from collections.abc import Iterator

from flux_trt.exporter.checkpoints.lora.prefixes import PREFIXES
from flux_trt.exporter.checkpoints.recipe import Concat, SwapHalves
from flux_trt.exporter.families.flux1.names import transformer_from_diffusers
from flux_trt.exporter.families.flux1.params import FLUX_DEV, FluxParams
from flux_trt.runtime.lora.forms import Modules
from flux_trt.runtime.lora.term import Place

CLIP_LAYERS, T5_BLOCKS = 12, 24
"""Of the encoders that FLUX.1 has."""
CLIP_MODULES = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
    "mlp.fc1",
    "mlp.fc2",
    "layer_norm1",
    "layer_norm2",
)
T5_MODULES = (
    *(f"0.SelfAttention.{name}" for name in ("q", "k", "v", "o")),
    *(f"1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")),
    "0.layer_norm",
    "1.layer_norm",
)


def modules(p: FluxParams = FLUX_DEV, clip: int = CLIP_LAYERS, t5: int = T5_BLOCKS) -> Modules:
    """All modules of a model of that shape, with so many layers of CLIP and blocks of T5."""
    transformer = dict(_transformer(p))
    return Modules({"transformer": transformer, "clip": dict(_clip(clip)), "t5": dict(_t5(t5))}, PREFIXES)


def _transformer(p: FluxParams) -> Iterator[tuple[str, Place]]:
    recipes = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.guidance_embed)
    for name, recipe in recipes.items():
        module, _, kind = name.rpartition(".")
        if kind == "bias":
            continue
        bias = f"{module}.bias" if kind == "weight" else None
        whole = Place("transformer", name, bias, widens=module == "img_in", norm=kind == "scale")
        yield module, whole
        if whole.norm:
            yield name, whole  # ComfyUI: `query_norm.scale.set_weight`
        theirs = [each.removesuffix(".weight") for each in recipe.names]
        if isinstance(recipe, Concat):
            sides = [p.hidden_size] * 3 + [p.mlp_hidden_dim] * (len(theirs) - 3)
            for i, each in enumerate(theirs):
                yield each, Place("transformer", name, bias, rows=(sum(sides[:i]), sum(sides[: i + 1])))
        else:
            swapped = isinstance(recipe, SwapHalves)
            yield theirs[0], Place("transformer", name, bias, None, swapped, whole.widens, whole.norm)
    for i in range(p.depth):
        for number, stream in (("1", "img"), ("2", "txt")):
            for name in ("qkv", "proj"):
                parameter = f"double_blocks.{i}.{stream}_attn.{name}"
                place = Place("transformer", f"{parameter}.weight", f"{parameter}.bias")
                yield f"double_blocks.{i}.processor.{name}_lora{number}", place
    for i in range(p.depth_single_blocks):
        first, last = (f"single_blocks.{i}.linear{number}" for number in (1, 2))
        qkv = 3 * p.hidden_size
        attention = Place("transformer", f"{first}.weight", f"{first}.bias", rows=(0, qkv))
        mlp = Place("transformer", f"{first}.weight", f"{first}.bias", rows=(qkv, qkv + p.mlp_hidden_dim))
        yield (
            f"single_blocks.{i}.processor.qkv",
            attention,
        )  # XLabs: `qkv_lora`, of which `keys` takes `_lora`
        yield f"single_blocks.{i}.processor.proj", Place("transformer", f"{last}.weight", f"{last}.bias")
        yield f"{first}_qkv", attention
        yield f"{first}_mlp", mlp


def _clip(layers: int) -> Iterator[tuple[str, Place]]:
    names = [f"encoder.layers.{i}.{name}" for i in range(layers) for name in CLIP_MODULES]
    for name in (*names, "final_layer_norm"):
        for spelled in (name, f"text_model.{name}"):
            yield spelled, Place("clip", f"{name}.weight", f"{name}.bias")
    yield "text_model.embeddings.token_embedding", Place("clip", "embeddings.token_embedding.weight")


def _t5(blocks: int) -> Iterator[tuple[str, Place]]:
    names = [f"encoder.block.{i}.layer.{name}" for i in range(blocks) for name in T5_MODULES]
    for name in (*names, "encoder.final_layer_norm"):
        yield name, Place("t5", f"{name}.weight")
