"""Build TensorRT-RTX engines of a bundle's stages for sm 8.9, without a GPU: a JSON line per stage.

Run as a child process: a fault in the builder ends it. The product's builder is `exporter/engines/engine.py`;
this one tells which layers TensorRT makes of a graph.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tensorrt_rtx as trt
from trt_network import Network

from flux_trt.runtime.bundle import manifest

RANGES = {
    "batch": (1, 1, 2),
    "text": (8, 32, 64),
    "tokens": (4, 16, 64),
    "reference": (0, 16, 64),
    "sequence": (12, 48, 128),
    "steps": (1, 12, 28),
    "h": (2, 4, 8),
    "w": (2, 4, 8),
    "height": (32, 64, 128),
    "width": (32, 64, 128),
}
RANK = (1, 8, 24)
"""Of LoRAs' branches."""


def build(path: Path, stage: manifest.Stage, logger: trt.Logger) -> dict[str, object]:
    graph = Network(trt, path, logger)
    if graph.fault:
        return {"bytes": 0, "fault": graph.fault}
    # Attention in fp32, or with the VAE's wide head, has no kernel of its own: let the builder take it apart.
    for layer in map(graph.network.get_layer, range(graph.network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # how the binding casts a layer
            layer.attention.decomposable = True
    shapes = {}
    for tensor in stage.inputs:
        ranges = [(dim,) * 3 if isinstance(dim, int) else RANGES.get(dim, RANK) for dim in tensor.dims]
        shapes[tensor.name] = list(zip(*ranges, strict=True))
    engine = graph.plan(shapes, ["SM89"])
    return {"bytes": engine.nbytes if engine else 0, "layers": sorted(set(graph.kinds))}


def main(root: Path) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    for name, stage in manifest.read(root).stages.items():
        print(json.dumps({"stage": name, **build(root / stage.graph, stage, logger)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
