"""Safetensors files by byte range: what ONNX external data needs and the safetensors package hides.

Format: https://huggingface.co/docs/safetensors (eight bytes of header length, a JSON header, then the data).
Tensors are read with plain reads, one at a time, so that memory holds one tensor and never a mapped model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch

from flux_trt.exporter.written import Written
from flux_trt.runtime.errors import BuildError, CheckpointError
from flux_trt.runtime.lora import stored
from flux_trt.runtime.lora.stored import Stored

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

    @classmethod
    def of(cls, each: Stored) -> TensorInfo:
        """A tensor that was found without torch."""
        return cls(each.file, DTYPES[each.dtype], each.shape, each.offset, each.nbytes)

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


read_metadata = stored.read_metadata
AnyTensor = TensorInfo | Decoded
"""What a part's tensors are."""


def read_header(path: Path) -> dict[str, TensorInfo]:
    """All tensors of a safetensors file, by name, without touching the data.

    Raises:
        CheckpointError: not a safetensors file, or one whose header does not fit the file.
    """
    return {name: TensorInfo.of(each) for name, each in stored.read_header(path).items()}


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
