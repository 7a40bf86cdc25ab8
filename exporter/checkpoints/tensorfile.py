"""Safetensors files by byte range: what ONNX external data needs and the safetensors package hides.

Format: https://huggingface.co/docs/safetensors (eight bytes of header length, a JSON header, then the data).
Tensors are read with plain reads, one at a time, so that memory holds one tensor and never a mapped model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from flux_trt.exporter.checkpoints.foreign import AGAIN, foreign_file
from flux_trt.exporter.written import Written
from flux_trt.runtime.errors import BuildError, CheckpointError

HEADER_LIMIT = 100_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: bytes [offset, offset + nbytes) of `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def files(self) -> tuple[Path, ...]:
        """Where its bytes lie."""
        return (self.file,)

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own. Raises CheckpointError when the file ends early."""
        data = bytearray(self.nbytes)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            if file.readinto(data) != self.nbytes:
                raise CheckpointError(f"{self.file} ends early; copy or download it again")
        if not data:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Decoded:
    """A tensor that is kept as others: codes, and the scales that make numbers of them."""

    format: str
    """For people: "scaled fp8", "NF4"."""
    shape: tuple[int, ...]
    parts: tuple[TensorInfo, ...]
    make: Callable[..., torch.Tensor] = field(repr=False)
    """From the parts' tensors, in their order, the numbers, float32 of `shape`."""
    dtype: torch.dtype = torch.float32
    coded: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = field(default=None, repr=False)
    """Where the codes are E4M3: from the parts' tensors, the codes and their scale, float32, [] or [rows]."""
    input_scale: TensorInfo | None = None
    """What its layer's input is divided by before it is quantised, where the file has that."""
    told: str = ""
    """How it is made, where its parts' bytes alone do not say it: with which LoRA, how strongly."""

    @property
    def nbytes(self) -> int:
        """Of all its parts in their files."""
        return sum(part.nbytes for part in self.parts)

    @property
    def files(self) -> tuple[Path, ...]:
        """Where its parts lie."""
        return tuple(dict.fromkeys(part.file for part in self.parts))

    def read(self) -> torch.Tensor:
        """The numbers, in memory of their own. Raises CheckpointError when a file ends early."""
        return self.make(*(part.read() for part in self.parts)).reshape(self.shape)


AnyTensor = TensorInfo | Decoded
"""What a part's tensors are."""


def read_header(path: Path) -> dict[str, TensorInfo]:
    """All tensors of a safetensors file, by name, without touching the data.

    Raises:
        CheckpointError: not a safetensors file, or one whose header does not fit the file.
    """
    header, base, size = _read(path)
    header.pop("__metadata__", None)
    with _whole(path):
        return {name: _entry(path, entry, base, size) for name, entry in header.items()}


def read_metadata(*paths: Path) -> dict[str, str]:
    """What safetensors files, the shards of one model, say of themselves beside their tensors.

    Raises:
        CheckpointError: not a safetensors file.
    """
    found: dict[str, str] = {}
    for path in paths:
        said = _read(path)[0].get("__metadata__") or {}
        if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
            raise CheckpointError(f"{path} has metadata that is no text; {AGAIN}")
        found |= said
    return found


def _read(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the data begins, and the file's size."""
    with _whole(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
        return header, 8 + length, size


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turns what can be wrong with a file into a CheckpointError."""
    try:
        yield
    except OSError as fault:
        raise CheckpointError(f"cannot read {path}: {fault.strerror}; check the path") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as fault:
        if (what := foreign_file(path)) is not None:
            raise CheckpointError(f"{path} is {what}") from None
        raise CheckpointError(f"{path} is not a whole safetensors file ({fault}); {AGAIN}") from None


def _entry(path: Path, entry: Mapping[str, object], base: int, size: int) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']} is unknown")
    dtype, shape = DTYPES[str(entry["dtype"])], tuple(int(n) for n in entry["shape"])  # type: ignore[attr-defined]
    start, end = (int(n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
    if min(shape, default=0) < 0 or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's bytes do not fit its shape")
    if not 0 <= start <= end <= size - base:
        raise ValueError(f"a tensor ends at byte {base + end} and the file at {size}")
    return TensorInfo(path, dtype, shape, base + start, end - start)


class Writer:
    """Writes a safetensors file tensor by tensor: the header first, since all shapes are known.

    Use as a context manager; leaving it checks that every announced tensor was written and is on the
    disk, and leaves `entries` (where each tensor lies), `nbytes` (of `total`) and `sha256`.
    """

    def __init__(self, path: Path, tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> None:
        self.path = path
        self.entries: dict[str, TensorInfo] = {}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end, sizes = 0, []
        for name, dtype, shape in tensors:
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
            sizes.append((name, dtype, shape, start, end - start))
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % 64)
        self._head = len(text).to_bytes(8, "little") + text
        for name, dtype, shape, start, nbytes in sizes:
            self.entries[name] = TensorInfo(path, dtype, shape, len(self._head) + start, nbytes)
        self._pending = iter(self.entries.items())
        self._file: Written
        self.nbytes, self.sha256 = 0, ""
        self.total = len(self._head) + end

    def __enter__(self) -> Writer:
        self._file = Written(self.path)
        self._put(self._head)
        return self

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append `tensor`; names come in the announced order."""
        expected, info = next(self._pending, ("nothing", None))
        if (
            info is None
            or name != expected
            or (tensor.dtype, tuple(tensor.shape)) != (info.dtype, info.shape)
        ):
            raise BuildError(f"{self.path.name}: expected {expected}, got {name}; this is a bug, report it")
        self._put(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.nbytes = self._file.nbytes

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file.__exit__(kind, fault, trace)
            return
        with self._file:
            if (left := next(self._pending, None)) is not None:
                raise BuildError(f"{self.path.name}: {left[0]} was not written; this is a bug, report it")
        self.sha256 = self._file.record.sha256
