"""Ranges that a checkpoint tells: files in fp8 may hold what their layers' inputs were scaled by."""

from __future__ import annotations

from flux_trt.exporter.checkpoints.tensorfile import Decoded
from flux_trt.exporter.families.stage import Quantisation, Stage, large_layers
from flux_trt.exporter.quantise.e4m3 import LARGEST


def told(stage: Stage, per_channel: bool) -> Quantisation | None:
    """What the file quantises of a stage and the ranges it gives, or None: they must be calibrated.

    A layer that the file has in a wider type stays so. A file that gives the ranges of some of its fp8 layers
    only tells nothing.
    """
    inputs: dict[str, float] = {}
    for layer in large_layers(stage):
        infos = [stage.tensors[name] for name in stage.recipes[f"{layer}.weight"].names]
        coded = [info for info in infos if isinstance(info, Decoded)]
        scales = {float(info.input_scale.read()) for info in coded if info.input_scale is not None}
        if coded and (len(coded) < len(infos) or any(info.input_scale is None for info in coded)):
            return None
        if coded:
            inputs[layer] = LARGEST * max(scales)
    if not inputs:
        return None
    return Quantisation(layers=dict.fromkeys(inputs, "fp8"), inputs=inputs, per_channel=per_channel)
