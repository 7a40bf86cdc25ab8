"""The quantised precisions: each is how weights are kept, and how what enters a layer is rounded."""

from __future__ import annotations

import onnx_ir as ir

from flux_trt.exporter.quantise import e4m3, fp4, int4, int8
from flux_trt.exporter.quantise.format import Format, Inputs, Weights
from flux_trt.runtime.bundle.manifest import Precision

FORMATS: dict[Precision, Format] = {
    "fp8": Format(e4m3.SCALED, e4m3.SCALED),
    "int8": Format(int8.SCALED, int8.SCALED),
    "w8a16": Format(int8.SCALED),
    "w4a16": Format(int4.Blocks(), block=int4.BLOCK, otherwise="w8a16"),
    "nvfp4": Format(fp4.FP4, fp4.FP4, block=fp4.BLOCK, otherwise="fp8"),
}
RANGED: tuple[Precision, ...] = tuple(name for name, each in FORMATS.items() if each.inputs is not None)
"""Those that need a calibration: the ranges of what enters each layer."""
STORED: dict[ir.DataType, Weights] = {each.weights.kind: each.weights for each in FORMATS.values()}
ROUNDED: dict[ir.DataType, Inputs] = {
    each.inputs.kind: each.inputs for each in FORMATS.values() if each.inputs
}
"""By the type of the codes in a graph."""
