"""The TensorRT plugin `QKNormRope`, for TensorRT and TensorRT-RTX alike.

`register` it and parse with OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE: the builder then takes it for every
`flux::QKNormRope` node instead of the node's function. Without either, the function becomes native layers.
A process that loads a plan with the plugin must `register` too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from types import ModuleType
from typing import Any, cast

import numpy as np

from flux_trt.plugins.qk_norm_rope import contract
from flux_trt.plugins.qk_norm_rope.binary import source_digest
from flux_trt.plugins.qk_norm_rope.contract import NAME, NAMESPACE, VERSION, Attributes
from flux_trt.plugins.qk_norm_rope.launch import Launch, prepare

FIELDS = ("num_heads", "epsilon", "fp8_scales")
DTYPES = {"HALF": "float16", "BF16": "bfloat16", "FLOAT": "float32", "FP8": contract.FP8}
"""TensorRT's names of the dtypes, and ours."""


def register(trt: ModuleType) -> None:
    """Make the plugin known to `trt`, the module `tensorrt` or `tensorrt_rtx`; again is no fault."""
    registry = trt.get_plugin_registry()
    if registry.get_creator(NAME, VERSION, NAMESPACE) is None:
        registry.register_creator(creator(trt), NAMESPACE)


class QKNormRope:
    """The node in a network and in an engine: what IPluginV3 asks for, without its base classes.

    `plugin_class` adds these. TensorRT logs what a method raises, and gives up.
    """

    trt: ModuleType
    bases: tuple[Any, ...] = ()

    def __init__(self, attributes: Attributes) -> None:
        for base in self.bases:  # pybind11 wants each of them
            base.__init__(self)
        self.attributes = attributes
        self.launch: Launch | None = None
        self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
        self.num_outputs = len(contract.OUTPUTS)
        fast = f"{attributes.num_heads} heads{', FP8' if attributes.fp8_scales else ''}"
        self.timing_cache_id = f"{source_digest()[:16]}, {fast}"  # what the time depends on, shapes apart
        self.metadata_string = str(attributes)

    def get_capability_interface(self, type: Any) -> QKNormRope:
        """One object is core, build and runtime."""
        return self

    def clone(self) -> QKNormRope:
        """The same attributes and loaded kernel, in an object of its own."""
        cloned = self.__class__(self.attributes)
        cloned.launch = self.launch
        return cloned

    # Build

    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        """The dtype of what is projected, or FP8, for q and for k."""
        return [self.trt.DataType.FP8 if self.attributes.fp8_scales else input_types[0]] * 2

    def get_output_shapes(
        self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any
    ) -> list[Any]:
        """[B, H, L, E] for q and for k."""
        qkv, scale = inputs[0], inputs[-4]
        shapes = [self.trt.DimsExprs(4) for _ in contract.OUTPUTS]
        for shape in shapes:
            shape[0], shape[1] = qkv[0], builder.constant(self.attributes.num_heads)
            shape[2], shape[3] = qkv[1], scale[0]
        return shapes

    def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
        """Row-major tensors of the contract's dtypes."""
        descriptions = [each.desc for each in in_out[: pos + 1]]
        dtypes = [DTYPES.get(each.type.name, "other") for each in descriptions]
        linear = descriptions[pos].format == self.trt.TensorFormat.LINEAR
        return linear and contract.dtype_fits(pos, dtypes, self.attributes, num_inputs)

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Refuse shapes that do not fit; the tokens and the batch may still be open (-1)."""
        contract.check(self.attributes, [tuple(each.desc.dims) for each in inputs])

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        """None is needed."""
        return 0

    # Runtime

    def get_fields_to_serialize(self) -> Any:
        """The attributes, for the plan."""
        self.fields = self.trt.PluginFieldCollection(_fields(self.trt, self.attributes))
        return self.fields

    def attach_to_context(self, resource_context: Any) -> QKNormRope:
        """An object for one execution context."""
        return self.clone()

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Load the kernel for these shapes, so that `enqueue` only starts it."""
        shapes = [tuple(each.dims) for each in inputs]
        contract.check(self.attributes, shapes)
        dtype = DTYPES[inputs[0].type.name]
        self.launch = prepare(self.attributes, shapes[0], shapes[-4][0], dtype, len(shapes))

    def enqueue(
        self,
        input_desc: Sequence[Any],
        output_desc: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Start the kernel on TensorRT's stream."""
        assert self.launch is not None, "TensorRT calls on_shape_change first"
        self.launch.run(inputs, outputs, stream)


@cache
def plugin_class(trt: ModuleType) -> type[QKNormRope]:
    """`QKNormRope` with the base classes of `trt`."""
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    return cast(type[QKNormRope], type(NAME, (QKNormRope, *bases), {"trt": trt, "bases": bases}))


@cache
def creator(trt: ModuleType) -> Any:
    """The IPluginCreatorV3One of `trt`; the cache keeps alive what the registry only points to."""

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            example = Attributes(num_heads=1, fp8_scales=(1.0, 1.0))
            self.field_names = trt.PluginFieldCollection(_fields(trt, example))

        def create_plugin(self, name: str, field_collection: Any, phase: Any) -> QKNormRope:
            return plugin_class(trt)(attributes_from_fields(field_collection))

    return Creator()


def attributes_from_fields(fields: Iterable[Any]) -> Attributes:
    """The attributes of a node, or of a plan, as `trt.PluginField`s.

    Raises:
        ValueError: one is missing, unknown or means nothing.
    """
    found = {field.name: np.asarray(field.data).ravel() for field in fields}
    if unknown := sorted(set(found) - set(FIELDS)):
        raise ValueError(f"{NAME}: there is no attribute {unknown[0]}; there are {', '.join(FIELDS)}")
    if "num_heads" not in found:
        raise ValueError(f"{NAME}: the attribute num_heads is missing")
    scales = tuple(float(scale) for scale in found.get("fp8_scales", ()))
    return Attributes(
        num_heads=int(found["num_heads"][0]),
        epsilon=float(found["epsilon"][0]) if "epsilon" in found else 1e-6,
        fp8_scales=cast(tuple[float, float], scales) if scales else None,
    )


def _fields(trt: ModuleType, attributes: Attributes) -> list[Any]:
    kind = trt.PluginFieldType
    fields = [
        trt.PluginField("num_heads", np.array([attributes.num_heads], np.int32), kind.INT32),
        trt.PluginField("epsilon", np.array([attributes.epsilon], np.float32), kind.FLOAT32),
    ]
    if attributes.fp8_scales:
        scales = np.array(attributes.fp8_scales, np.float32)
        fields.append(trt.PluginField("fp8_scales", scales, kind.FLOAT32))
    return fields
