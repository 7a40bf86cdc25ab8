"""Every module of FLUX.2 that a LoRA may change, under BFL's and diffusers' names.

Both come from `names`, so that rows and halves are those of the weights. No encoder is changed by any.
"""

from __future__ import annotations

from collections.abc import Iterator

from flux_trt.exporter.checkpoints.lora.prefixes import PREFIXES
from flux_trt.exporter.checkpoints.recipe import Concat, SwapHalves
from flux_trt.exporter.families.flux2.names import transformer_from_diffusers
from flux_trt.exporter.families.flux2.params import DEV, Flux2Params
from flux_trt.runtime.lora.forms import Modules
from flux_trt.runtime.lora.term import Place


def modules(p: Flux2Params = DEV) -> Modules:
    """All modules of a model of that shape."""
    return Modules({"transformer": dict(_transformer(p)), "clip": {}, "t5": {}}, PREFIXES)


def _transformer(p: Flux2Params) -> Iterator[tuple[str, Place]]:
    recipes = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.guidance_embed)
    for name, recipe in recipes.items():
        module, _, kind = name.rpartition(".")
        norm = kind == "scale"
        yield module, Place("transformer", name, norm=norm)
        if norm:
            yield name, Place("transformer", name, norm=True)
        theirs = [each.removesuffix(".weight") for each in recipe.names]
        if isinstance(recipe, Concat):
            for i, each in enumerate(theirs):
                rows = i * p.hidden_size, (i + 1) * p.hidden_size
                yield each, Place("transformer", name, rows=rows)
        else:
            swapped = isinstance(recipe, SwapHalves)
            yield theirs[0], Place("transformer", name, swapped=swapped, norm=norm)
