"""Which layers of a stage are quantised, each in which format."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import nn

from flux_trt.exporter.families.stage import Quantisation, Stage, large_layers, skeleton
from flux_trt.exporter.quantise.formats import FORMATS
from flux_trt.runtime.bundle.manifest import QUANTISED, Precision


def formats_of(stage: Stage) -> dict[str, Precision]:
    """Linear layer -> its format, in the module's order: the stage's precision, or what stands in for it."""
    module = skeleton(stage)
    return {name: _fitting(stage.precision, module.get_submodule(name)) for name in large_layers(stage)}


def _fitting(precision: Precision, layer: nn.Module) -> Precision:
    """A format that scales blocks of channels needs whole ones."""
    kept = FORMATS[precision]
    assert isinstance(layer, nn.Linear)
    if layer.in_features % kept.block == 0:
        return precision
    assert kept.otherwise is not None
    return kept.otherwise


def roughly_quantised(stage: Stage) -> Stage:
    """The stage with the sizes that its precision gives it, while its ranges are not known yet."""
    if stage.precision not in QUANTISED:
        return stage
    return replace(stage, quantisation=Quantisation(layers=formats_of(stage)))


def apart(stage: Stage) -> str | None:
    """A line about the layers of a stage that are in another format than it, or None."""
    if stage.precision not in QUANTISED:
        return None
    layers = formats_of(stage)
    others = {name: each for name, each in layers.items() if each != stage.precision}
    if not others:
        return None
    told = ", ".join(f"{count} in {each}" for each, count in sorted(Counter(others.values()).items()))
    block = FORMATS[stage.precision].block
    return f"{stage.name}: of {len(layers)} layers {told}: they are no multiple of {block} wide"
