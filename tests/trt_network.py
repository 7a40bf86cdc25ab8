"""A TensorRT network of an ONNX graph, and a plan of it: what the tests' child processes share.

`trt` is the module `tensorrt` or `tensorrt_rtx`. The product's builder is `exporter/engines/builder.py`; this
one leaves the network open to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flux_trt.plugins.qk_norm_rope import plugin

Shapes = Sequence[Sequence[int]]
"""Smallest, usual and largest."""


class Network:
    """A graph as the parser reads it: a file, or its bytes; `fault` is None when it could read all."""

    def __init__(self, trt: Any, graph: str | Path | bytes, logger: Any, rope: str = "native") -> None:
        self._trt, self._builder = trt, trt.Builder(logger)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self._builder.create_network(typed)
        self._parser = trt.OnnxParser(self.network, logger)
        if rope == "plugin":
            plugin.register(trt)
            self._parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
        inside = isinstance(graph, bytes)
        read = self._parser.parse(graph) if inside else self._parser.parse_from_file(str(graph))
        self.fault = None if read else str(self._parser.get_error(0))

    @property
    def kinds(self) -> list[str]:
        """Of every layer, in order."""
        return [self.network.get_layer(i).type.name for i in range(self.network.num_layers)]

    def plan(self, shapes: Mapping[str, Shapes], targets: Iterable[str] = ()) -> Any:
        """The serialized engine with one profile, or None; `targets` such as SM89, () for the GPU present."""
        config, profile = self._builder.create_builder_config(), self._builder.create_optimization_profile()
        if capabilities := [getattr(self._trt.ComputeCapability, name) for name in targets]:
            config.num_compute_capabilities = len(capabilities)
            for index, capability in enumerate(capabilities):
                config.set_compute_capability(capability, index)
        for name, each in shapes.items():
            profile.set_shape(name, *each)
        config.add_optimization_profile(profile)
        return self._builder.build_serialized_network(self.network, config)
