"""Safetensors files by byte range, as NumPy reads them.

Format: https://huggingface.co/docs/safetensors (eight bytes of header length, a JSON header, then the data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.errors import CheckpointError

AGAIN = "copy or download it again"
HEADER_LIMIT = 100_000_000
BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
"""Type -> bytes of a number."""
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Those that are read as numbers -> how they lie."""
STARTS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file; give it by itself, not in a folder"),
    (b"PK\x03\x04", "a pickle (a zip of torch.save), which is not loaded; give the safetensors one"),
    (b"\x80\x02", "a pickle, which is not loaded; give the safetensors one"),
    (b"version https://git-lfs", "a Git LFS pointer and not the weights; fetch them with git lfs pull"),
    (b"<", "a page of HTML and not the weights: the download was refused; log in and download it again"),
    (b"{", "a JSON file and not the weights; give the file or folder with the weights"),
)
"""How a file begins -> what it is, and what to do."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: bytes [offset, offset + nbytes) of `file`."""

    file: Path
    dtype: str
    """As the format calls it, such as "BF16"."""
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self) -> npt.NDArray[Any]:
        """The numbers, float64 where they are that, else float32, in memory of their own.

        Raises:
            CheckpointError: the file ends early.
        """
        if not self.nbytes:
            return np.zeros(self.shape, np.float32)
        found = np.frombuffer(self._bytes(), FLOATS[self.dtype])
        if self.dtype == "BF16":  # the upper half of a float32
            return (found.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        return found.astype(np.float64 if self.dtype == "F64" else np.float32, copy=False).reshape(self.shape)

    @property
    def is_zero(self) -> bool:
        """Whether all its numbers are, of whatever type."""
        return not np.any(self.read()) if self.dtype in FLOATS else not any(self._bytes())

    def _bytes(self) -> bytearray:
        data = bytearray(self.nbytes)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            if file.readinto(data) != self.nbytes:
                raise CheckpointError(f"{self.file} ends early; {AGAIN}")
        return data


def read_header(path: Path) -> dict[str, Stored]:
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


def foreign_file(path: Path) -> str | None:
    """What a file is by its first bytes, when it is a known kind that is no safetensors file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    return next((what for begins, what in STARTS if start.startswith(begins)), None)


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


def _entry(path: Path, entry: Mapping[str, object], base: int, size: int) -> Stored:
    if entry["dtype"] not in BYTES:
        raise ValueError(f"dtype {entry['dtype']} is unknown")
    dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])  # type: ignore[attr-defined]
    start, end = (int(n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
    if min(shape, default=0) < 0 or end - start != math.prod(shape) * BYTES[dtype]:
        raise ValueError("a tensor's bytes do not fit its shape")
    if not 0 <= start <= end <= size - base:
        raise ValueError(f"a tensor ends at byte {base + end} and the file at {size}")
    return Stored(path, dtype, shape, base + start, end - start)
