"""Build TensorRT-RTX engines of a bundle's stages for sm 8.9, without a GPU: a JSON line per stage.

Run as a child process: a fault in the builder ends it. The product's builder is `exporter/engines/engine.py`;
this one tells which layers TensorRT makes of a graph.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tensorrt_rtx as trt

from flux_trt.runtime.bundle import manifest

RANGES = {
    "batch": (1, 1, 2),
    "text": (8, 32, 64),
    "tokens": (4, 16, 64),
    "sequence": (12, 48, 128),
    "steps": (1, 12, 28),
    "h": (2, 4, 8),
    "w": (2, 4, 8),
    "height": (32, 64, 128),
    "width": (32, 64, 128),
}


def build(path: Path, stage: manifest.Stage, logger: trt.Logger) -> dict[str, object]:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return {"bytes": 0, "fault": str(parser.get_error(0))}
    # Attention in fp32, or with the VAE's wide head, has no kernel of its own: let the builder take it apart.
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # how the binding casts a layer
            layer.attention.decomposable = True
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for tensor in stage.inputs:
        ranges = [(dim,) * 3 if isinstance(dim, int) else RANGES[dim] for dim in tensor.dims]
        profile.set_shape(tensor.name, *zip(*ranges, strict=True))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    layers = [network.get_layer(i).type.name for i in range(network.num_layers)]
    return {"bytes": engine.nbytes if engine else 0, "layers": sorted(set(layers))}


def main(root: Path) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    for name, stage in manifest.read(root).stages.items():
        print(json.dumps({"stage": name, **build(root / stage.graph, stage, logger)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
