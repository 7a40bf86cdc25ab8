"""Inputs of `flux::QKNormRope` with the numpy oracle's answer, and how near an implementation must come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from flux_trt.plugins.qk_norm_rope.oracle import qk_norm_rope

ROUNDING = {np.float32: 2.0**-24, np.float16: 2.0**-11, ml_dtypes.bfloat16: 2.0**-8}
"""Half the distance of two neighbours, relative to the number."""


@dataclass(frozen=True)
class RopeCase:
    """One call of the op."""

    tensors: dict[str, npt.NDArray]
    heads: int
    epsilon: float

    @property
    def projected(self) -> list[npt.NDArray]:
        """[B, L, C], or queries and keys apart."""
        return [self.tensors[name] for name in ("qkv", "queries", "keys") if name in self.tensors]

    @property
    def qkv(self) -> npt.NDArray:
        """The first of them."""
        return self.projected[0]

    @property
    def expected(self) -> tuple[npt.NDArray, npt.NDArray]:
        """q and k in float64 [B, H, L, E]."""
        others = list(self.tensors.values())[len(self.projected) :]
        return qk_norm_rope(self.projected, *others, self.heads, self.epsilon)

    def check(self, found: Sequence[npt.NDArray], truncated: bool = False) -> None:
        """Dtype, shape and values of q and k.

        The output is rounded once from float32, so it may be off by half a step of its dtype; before that,
        float32's own rounding in a sum of E squares, a square root and a rotation, of numbers as large as
        the pair that is turned. `truncated` is for those who cut digits off: a whole step.
        """
        for mine, exact in zip(found, self.expected, strict=True):
            assert mine.dtype == self.qkv.dtype
            assert mine.shape == exact.shape
            pair = exact.reshape(*exact.shape[:-1], -1, 2)
            size = np.repeat(np.hypot(pair[..., 0], pair[..., 1]), 2, axis=-1)
            last = ROUNDING[mine.dtype.type] * (2 if truncated else 1)
            limit = last * np.abs(exact) + 16 * ROUNDING[np.float32] * size + 1e-7
            error = np.abs(mine.astype(np.float64) - exact)
            assert (error <= limit).all(), f"{(error / limit).max():.2f} times what rounding explains"


def draw(
    dtype: type,
    batch: int,
    tokens: int,
    heads: int,
    head_dim: int,
    extra: int,
    *,
    size: float = 1.0,
    seed: int = 0,
    apart: bool = False,
) -> RopeCase:
    """Random inputs of a scale `size`.

    `extra` channels lie behind queries and keys, or half as many behind each where they are `apart`.
    """
    rng = np.random.default_rng(seed)
    qkv = rng.standard_normal((batch, tokens, 2 * heads * head_dim + extra)) * size
    scales = rng.uniform(-2, 2, (2, head_dim)).astype(dtype)
    angles = rng.uniform(-np.pi, np.pi, (tokens, head_dim // 2))
    projected = {"qkv": qkv.astype(dtype)}
    if apart:
        width = (2 * heads * head_dim + extra) // 2
        both = projected["qkv"]
        projected = {"queries": both[..., :width].copy(), "keys": both[..., -width:].copy()}
    tensors = {
        **projected,
        "q_scale": scales[0],
        "k_scale": scales[1],
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    return RopeCase(tensors, heads, epsilon=1e-6)


def graph(case: RopeCase) -> onnx.ModelProto:
    """A model of one node and its function."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(case.qkv.dtype)
    channels, E, table = case.qkv.shape[2], case.tensors["q_scale"].size, onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(
        "QKNormRope",
        list(case.tensors),
        ["q", "k"],
        domain="flux",
        num_heads=case.heads,
        epsilon=case.epsilon,
    )
    found = onnx.helper.make_graph(
        [node],
        "rope",
        [
            *(value(name, kind, ["batch", "tokens", channels]) for name in list(case.tensors)[:-4]),
            *(value(name, kind, [E]) for name in ("q_scale", "k_scale")),
            *(value(name, table, ["tokens", E // 2]) for name in ("cos", "sin")),
        ],
        [value(name, kind, ["batch", case.heads, "tokens", E]) for name in ("q", "k")],
    )
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("flux", 1)]
    from flux_trt.exporter.graphs.rope_function import function

    body = ir.serde.serialize_function(function(len(case.projected) == 2, case.qkv.dtype != np.float32))
    model = onnx.helper.make_model(found, functions=[body], opset_imports=imports, ir_version=11)
    onnx.checker.check_model(model, full_check=True)
    return model
