"""What the plugin's real classes do: one JSON object. Run as a child process, with the graph to parse.

    python tests/rope_plugin_child.py describe
    python tests/rope_plugin_child.py parse GRAPH native|plugin
    python tests/rope_plugin_child.py build GRAPH       native, for every architecture in one engine

A plugin layer takes the process down where there is no GPU, right after it was created: `parse ... plugin`
says what it was created with, and ends there.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import numpy as np
import tensorrt_rtx as trt
from trt_network import Network

from flux_trt.plugins.qk_norm_rope import plugin
from flux_trt.plugins.qk_norm_rope.contract import Attributes

KIND, LINEAR = trt.DataType, trt.TensorFormat.LINEAR


def description(dims: tuple[int, ...], kind: Any, layout: Any = LINEAR) -> Any:
    """A PluginTensorDesc."""
    found = trt.PluginTensorDesc()
    found.dims, found.type, found.format = dims, kind, layout
    return found


def dynamic(*descriptions: Any) -> list[Any]:
    """The same as DynamicPluginTensorDesc."""
    found = []
    for each in descriptions:
        found.append(trt.DynamicPluginTensorDesc())
        found[-1].desc = each
    return found


def tensors(kind: Any, out: Any, tokens: int = 5, width: int = 288) -> list[Any]:
    """Descriptions of the inputs and outputs for two heads of 48."""
    table = description((tokens, 24), KIND.FLOAT)
    inputs = [description((1, tokens, width), kind), *[description((48,), kind)] * 2, table, table]
    return [*inputs, *[description((1, 2, tokens, 48), out)] * 2]


def fault(call: Any, *arguments: Any) -> str:
    """What the call says is wrong."""
    try:
        call(*arguments)
    except ValueError as wrong:
        return str(wrong)
    return ""


def signatures() -> dict[str, Any]:
    """The parameters of every method that TensorRT calls."""
    found = {}
    for owner in (trt.IPluginV3, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
        for name in dir(owner):
            told = re.match(rf"{name}\(self: [\w.]+(?:, )?(.*)\) -> ", getattr(owner, name).__doc__ or "")
            if told and not name.startswith("_"):
                found[name] = re.findall(r"(\w+): ", told[1])
    return found


def described() -> dict[str, Any]:
    """Everything that can be asked without a network."""
    registry = trt.get_plugin_registry()
    before = len(registry.all_creators)
    plugin.register(trt)
    plugin.register(trt)
    creator = registry.get_creator("QKNormRope", "1", "")
    made = []
    for attributes in (Attributes(24), Attributes(2, 1e-5, (0.5, 0.25))):
        whole = plugin.plugin_class(trt)(attributes)
        again = creator.create_plugin("again", whole.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
        ids = [each.timing_cache_id for each in (whole, whole.clone(), again)]
        same = vars(again.attributes)
        made.append({"attributes": same, "ids": ids, "fields": [f.name for f in whole.fields]})
    node = plugin.plugin_class(trt)(Attributes(2))
    fp8 = plugin.plugin_class(trt)(Attributes(2, fp8_scales=(1.0, 1.0)))
    accepted = {}
    for label, each in (("plain", node), ("fp8", fp8)):
        for kind in (KIND.HALF, KIND.BF16, KIND.FLOAT, KIND.INT8, KIND.INT64):
            for out in {kind, KIND.FP8}:
                every = dynamic(*tensors(kind, out))
                taken = [each.supports_format_combination(i, every, 5) for i in range(len(every))]
                accepted[f"{label} {kind.name} {out.name}"] = all(taken)
    for kind in (KIND.HALF, KIND.BF16, KIND.FLOAT, KIND.INT8):
        packed = tensors(kind, kind, width=96)
        every = dynamic(packed[0], *packed)
        taken = [node.supports_format_combination(i, every, 6) for i in range(len(every))]
        accepted[f"apart {kind.name} {kind.name}"] = all(taken)
    other = dynamic(description((1, 5, 288), KIND.HALF, trt.TensorFormat.CHW2))
    core = [
        node.get_capability_interface(kind) is node for kind in trt.PluginCapabilityType.__members__.values()
    ]
    attached = node.attach_to_context(None)
    return {
        "registered": len(registry.all_creators) - before,
        "creator": [creator.name, creator.plugin_version, creator.plugin_namespace],
        "creator_fields": {field.name: field.type.name for field in creator.field_names},
        "made": made,
        "core": [core, node.plugin_name, node.plugin_version, node.plugin_namespace, node.num_outputs],
        "interfaces": [isinstance(attached, base) for base in plugin.plugin_class(trt).bases],
        "attached_is_new": attached is not node,
        "types": [[t.name for t in each.get_output_data_types([KIND.BF16] * 5)] for each in (node, fp8)],
        "accepted": accepted,
        "other_layout": node.supports_format_combination(0, other, 5),
        "workspace": node.get_workspace_size([], []),
        "fits": fault(node.configure_plugin, dynamic(*tensors(KIND.HALF, KIND.HALF))[:5], []),
        "open": fault(node.configure_plugin, dynamic(*tensors(KIND.HALF, KIND.HALF, tokens=-1))[:5], []),
        "narrow": fault(node.configure_plugin, dynamic(*tensors(KIND.HALF, KIND.HALF, width=176))[:5], []),
        "narrow_at_run": fault(node.on_shape_change, tensors(KIND.HALF, KIND.HALF, width=176)[:5], []),
        "no_heads": fault(creator.create_plugin, "x", trt.PluginFieldCollection(), trt.TensorRTPhase.BUILD),
        "unknown": fault(plugin.attributes_from_fields, [trt.PluginField("heads", np.zeros(1, np.int32))]),
        "signatures": signatures(),
    }


def parse(path: str, rope: str) -> dict[str, Any]:
    """The layers that a graph becomes, or what the plugin was created with."""
    if rope == "plugin":
        plugin.register(trt)
        cls = plugin.plugin_class(trt)

        def created(self: Any, attributes: Attributes) -> None:
            print(json.dumps({"created": vars(attributes)}), flush=True)
            os._exit(0)

        cls.__init__ = created  # type: ignore[method-assign]
    network = Network(trt, path, trt.Logger(trt.Logger.ERROR), rope)
    return {"parsed": network.fault is None, "layers": network.kinds}


def build(path: str) -> dict[str, Any]:
    """How large the native engine for every architecture is, and which these are."""
    graph = Network(trt, path, trt.Logger(trt.Logger.ERROR))
    assert graph.fault is None, graph.fault
    network, shapes = graph.network, {}
    targets = [name for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    if network.get_input(0).dtype == trt.DataType.BF16:
        targets.remove("SM75")  # has no bfloat16
    for tensor in map(network.get_input, range(network.num_inputs)):
        if -1 in tensor.shape:
            wide = [[size if size > 0 else some for size in tensor.shape] for some in (1, 2, 2)]
            shapes[tensor.name] = wide
    engine = graph.plan(shapes, targets)
    return {"bytes": engine.nbytes if engine else 0, "targets": targets}


if __name__ == "__main__":
    modes = {"describe": described, "parse": parse, "build": build}
    print(json.dumps(modes[sys.argv[1]](*sys.argv[2:])))
