"""GGUF files: a transformer with BFL's names, or a T5 with llama.cpp's, which become transformers'.

A header of typed values, a list of tensors, and their data; dims are listed with the fastest first, so a
shape [out, in] reads (in, out). What is stored as plain numbers is used where it lies; blocks of codes are
made numbers by the `gguf` package, a tensor at a time. Nothing of the data is read here, or mapped.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3),
https://github.com/city96/ComfyUI-GGUF/blob/main/loader.py (`comfy.gguf.orig_shape.*`, T5's names).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch

from flux_trt.exporter.checkpoints.quantised.refused import broken
from flux_trt.exporter.checkpoints.quantised.t5_names import t5_names
from flux_trt.exporter.checkpoints.tensorfile import AnyTensor, Decoded, TensorInfo
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.stored import HEADER_LIMIT

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a value -> how `struct` calls it."""
STRING, ARRAY = 8, 9
LONGEST = 16
"""Numbers of an array that is kept, such as a shape; vocabularies are passed over."""
ORIGINAL = "comfy.gguf.orig_shape."
PLAIN = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
}


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does; False for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> tuple[dict[str, AnyTensor], dict[str, Any]]:
    """All tensors of a GGUF file, by name, and what it says of itself, without its long lists.

    Raises:
        CheckpointError: not a whole GGUF file, a type that the `gguf` package does not make numbers of, or
            no such package.
    """
    package = _package()
    try:
        with path.open("rb") as file:
            said, listed, end = _Header(file).whole()
        align = said.get("general.alignment", 32)
        if not (isinstance(align, int) and 0 < align <= 4096 and align % 8 == 0):
            raise ValueError(f"an alignment of {align}")
        base, size = end + -end % align, path.stat().st_size
        tensors: dict[str, AnyTensor] = {}
        for name, dims, code, offset in listed:
            if name in tensors or offset % align:
                raise ValueError(f"{name} is listed twice or lies between places")
            shape = tuple(said.get(ORIGINAL + name) or reversed(dims))
            tensors[name] = _tensor(package, path, name, dims, shape, code, base + offset, size)
    except OSError as fault:
        raise CheckpointError(f"cannot read {path}: {fault.strerror}; check the path") from None
    except (ValueError, TypeError, struct.error) as fault:
        raise broken(path, f"is not a whole GGUF file ({fault})") from None
    return t5_names(tensors), said


def read_values(path: Path, lists: Collection[str]) -> dict[str, Any]:
    """What a GGUF file says of itself, with those of its long lists that are named.

    Raises:
        CheckpointError: not a GGUF file.
    """
    try:
        with path.open("rb") as file:
            return _Header(file, lists).values()[0]
    except OSError as fault:
        raise CheckpointError(f"cannot read {path}: {fault.strerror}; check the path") from None
    except (ValueError, struct.error) as fault:
        raise broken(path, f"is not a whole GGUF file ({fault})") from None


def _package() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise CheckpointError(
            "gguf is not installed; install flux_trt with its extra: flux_trt[gguf]"
        ) from None
    return gguf


class _Header:
    """Reads the values at the beginning of a file, never more than HEADER_LIMIT bytes of it."""

    def __init__(self, file: BinaryIO, lists: Collection[str] = ()) -> None:
        self.file, self.left, self.lists = file, HEADER_LIMIT, lists

    def values(self) -> tuple[dict[str, Any], int]:
        """What the file says of itself, and how many tensors are listed after it."""
        if self.take(4) != MAGIC:
            raise ValueError("no GGUF at its beginning")
        if (version := self.number("I")) not in VERSIONS:
            raise ValueError(f"version {version}" if version < 1 << 16 else "big-endian")
        tensors, values = self.number("Q"), self.number("Q")
        said = {}
        for _ in range(values):
            key = self.string()
            said[key] = self.value(self.number("I"), key in self.lists)
        return said, tensors

    def whole(self) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]], int]:
        """The same; the tensors: name, dims, type and offset; where this ends."""
        said, tensors = self.values()
        listed = []
        for _ in range(tensors):
            name, rank = self.string(), self.number("I")
            if rank > 8:
                raise ValueError(f"{name} has {rank} dims")
            dims = tuple(self.number("Q") for _ in range(rank))
            listed.append((name, dims, self.number("I"), self.number("Q")))
        return said, listed, HEADER_LIMIT - self.left

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise ValueError("a header without an end")
        self.left -= count
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError("it ends early")
        return data

    def number(self, kind: str) -> Any:
        """The next number."""
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        """The next text."""
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, whole: bool) -> Any:
        """The next value; None for an array of texts, or of more than LONGEST numbers, unless `whole`."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"a value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner == STRING:
            if whole:
                return [self.string() for _ in range(count)]
            for _ in range(count):
                self.string()
            return None
        if inner not in SCALARS:
            raise ValueError(f"an array of type {inner}")
        data = self.take(count * struct.calcsize(f"<{SCALARS[inner]}"))
        kept = whole or count <= LONGEST
        return list(struct.unpack(f"<{count}{SCALARS[inner]}", data)) if kept else None


def _tensor(
    package: ModuleType,
    path: Path,
    name: str,
    dims: tuple[int, ...],
    shape: tuple[int, ...],
    code: int,
    start: int,
    size: int,
) -> AnyTensor:
    """Where a tensor lies, or how it is made of its blocks."""
    try:
        kind = package.GGMLQuantizationType(code)
        block, nbytes = package.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise CheckpointError(
            f"{path}: {name} is of type {code}, which the gguf package that is installed does not know; "
            "install a newer one"
        ) from None
    count = math.prod(dims)
    if not all(isinstance(n, int) and n > 0 for n in shape) or math.prod(shape) != count:
        raise ValueError(f"{name} of dims {list(dims)} is said to be {list(shape)}")
    if (dims or (1,))[0] % block:
        raise ValueError(f"{name} is {kind.name} and has rows of {dims[:1]} numbers")
    total = count // block * nbytes
    if start + total > size:
        raise ValueError(f"{name} ends at byte {start + total} and the file at {size}")
    if kind.name in PLAIN:
        return TensorInfo(path, PLAIN[kind.name], shape, start, total)
    rows = (count // dims[0], dims[0] // block * nbytes)
    codes = TensorInfo(path, torch.uint8, rows, start, total)
    try:
        package.quants.dequantize(torch.zeros(1, nbytes, dtype=torch.uint8).numpy(), kind)
    except NotImplementedError:
        raise CheckpointError(
            f"{path}: {name} is {kind.name}, which the gguf package does not make numbers of; "
            "give one in Q8_0 or bf16"
        ) from None
    return Decoded(f"GGUF {kind.name}", shape, (codes,), partial(_numbers, code))


def _numbers(code: int, codes: torch.Tensor) -> torch.Tensor:
    """Rows of blocks of a type [rows, bytes] -> numbers [rows, columns]."""
    package = _package()
    kind = package.GGMLQuantizationType(code)
    return torch.from_numpy(package.quants.dequantize(codes.numpy(), kind))
