"""What TensorRT-RTX makes of a graph, read off its builder's own report: kernels, bytes, types.

With DETAILED profiling the builder logs each compiled kernel in a line: its name, its kind, and all that it
reads and writes with shape and type, so that the bytes that it moves follow. That needs no GPU; an engine
could be asked for the same only where there is one. Kinds (TensorRT-RTX 1.7): `gemm` is a product with
nothing fused behind it, `runtime_fusion` one with what follows it, `kgen` all that is compiled, attention
included; the rest keeps the books.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from flux_trt.runtime.bundle.record import Record

KERNEL = re.compile(r"Name: (?P<name>\S+), LayerType: (?P<kind>\w+), Inputs: \[")
TENSOR = re.compile(r"Dimensions: \[(?P<dims>[-\d,]*)\], .*?Datatype: (?P<type>\w+)")
PARTS = re.compile(r"\], (Constants|Outputs): \[")
BOOKS = {"signal", "wait", "shape_call", "constant", "reshape_call"}
"""Kinds that are no work on the GPU."""
PRODUCTS = {"gemm", "runtime_fusion", "conv", "correlation"}
ATTENTION = "_gemm_mha"
"""In the names of fused attentions."""
BITS = {"Double": 64, "Int64": 64, "Float": 32, "Int32": 32, "BFloat16": 16, "Half": 16}
BITS |= {"FP8": 8, "Int8": 8, "UInt8": 8, "Bool": 8, "FP8E8M0": 8, "E8M0": 8}
BITS |= {"FP4": 4, "FP4E2M1": 4, "Int4": 4}

Kind = Literal["elementwise", "product", "attention"]


@dataclass(frozen=True)
class Kernel:
    """One that the engine launches in each run."""

    name: str
    kind: Kind
    nbytes: int
    """Read and written, constants included."""
    takes: tuple[str, ...]
    """Types of what it reads, but for constants."""
    keeps: tuple[str, ...] = ()
    """Types of its constants, the largest first."""


class Counts(Record):
    """What one run of an engine takes."""

    kernels: int
    elementwise_mb: float
    product_mb: float
    attention_mb: float
    products: dict[str, int]
    """Matrix products by the type of what comes in."""
    attentions: dict[str, int]
    """Fused attentions, likewise."""
    weights: dict[str, int] = Field(default_factory=dict)
    """Matrix products by the type of the weight that they read as it is stored."""

    @classmethod
    def of(cls, log: str) -> Counts:
        """From all that a builder has logged.

        Raises:
            ValueError: there is no kernel in it, or one of a type that is not known here.
        """
        found = list(kernels(log))
        if not found:
            raise ValueError("the builder's log lists no kernel")

        def megabytes(kind: Kind) -> float:
            return round(sum(each.nbytes for each in found if each.kind == kind) / 1e6, 3)

        def types(kind: Kind) -> dict[str, int]:
            return dict(sorted(Counter(each.takes[0] for each in found if each.kind == kind).items()))

        stored = Counter(each.keeps[0] for each in found if each.kind == "product" and each.keeps)

        return cls(
            kernels=len(found),
            elementwise_mb=megabytes("elementwise"),
            product_mb=megabytes("product"),
            attention_mb=megabytes("attention"),
            products=types("product"),
            attentions=types("attention"),
            weights=dict(sorted(stored.items())),
        )


def kernels(log: str) -> Iterator[Kernel]:
    """Every kernel in a builder's log, in its order.

    Raises:
        ValueError: a type that is not known here.
    """
    for line in log.splitlines():
        match = KERNEL.search(line)
        if match is None or match["kind"] in BOOKS:
            continue
        inside = line[match.end() :].partition(", TacticName:")[0]
        inputs, *rest = PARTS.split(inside)
        taken = [(each["dims"], each["type"]) for each in TENSOR.finditer(inputs)]
        parts = dict(zip(rest[::2], rest[1::2], strict=True))
        others = [(each["dims"], each["type"]) for part in rest for each in TENSOR.finditer(part)]
        kept = [(each["dims"], each["type"]) for each in TENSOR.finditer(parts.get("Constants", ""))]
        kind: Kind = "product" if match["kind"] in PRODUCTS else "elementwise"
        if ATTENTION in match["name"]:
            kind = "attention"
        yield Kernel(
            match["name"],
            kind,
            sum(_bytes(*each) for each in [*taken, *others]),
            tuple(each for _, each in taken),
            tuple(type_ for _, type_ in sorted(kept, key=lambda each: -_elements(each[0]))),
        )


def _elements(dims: str) -> int:
    return math.prod(int(each) for each in dims.split(",") if each)


def _bytes(dims: str, kind: str) -> int:
    if kind not in BITS:
        raise ValueError(f"the builder's report has the type {kind!r}, which is not known here")
    return -(-_elements(dims) * BITS[kind] // 8)
