"""Every module of FLUX.3 that a LoRA may change, under BFL's and diffusers' names.

Both come from `names`, so that halves are those of the weights. No encoder is changed by any.
"""

from __future__ import annotations

from collections.abc import Iterator

from flux_trt.exporter.checkpoints.lora.prefixes import PREFIXES
from flux_trt.exporter.checkpoints.recipe import SwapHalves
from flux_trt.exporter.families.flux3.names import transformer_from_diffusers
from flux_trt.exporter.families.flux3.params import KLEIN, Flux3Params
from flux_trt.runtime.lora.forms import Modules
from flux_trt.runtime.lora.term import Place


def modules(p: Flux3Params = KLEIN) -> Modules:
    """All modules of a model of that shape."""
    return Modules({"transformer": dict(_transformer(p)), "clip": {}, "t5": {}}, PREFIXES)


def _transformer(p: Flux3Params) -> Iterator[tuple[str, Place]]:
    for name, recipe in transformer_from_diffusers(p.depth, p.depth_single_blocks, p.flow_map).items():
        module, _, kind = name.rpartition(".")
        norm = kind == "scale"
        yield module, Place("transformer", name, norm=norm)
        if norm:
            yield name, Place("transformer", name, norm=True)
        swapped = isinstance(recipe, SwapHalves)
        theirs = recipe.names[0].removesuffix(".weight")
        if theirs != module:
            yield theirs, Place("transformer", name, swapped=swapped, norm=norm)
