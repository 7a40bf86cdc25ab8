"""Are all values of a file finite? Looked at while the file is hashed, so that nothing is read twice."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from flux_trt.exporter.checkpoints.tensorfile import TensorInfo

EXPONENTS = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
}
"""Type -> an integer of its size, and the exponent that only inf and nan have."""
LARGEST = 8


class Finite:
    """A file that goes by in chunks, in order: the names of its tensors with inf or nan are in `broken`."""

    def __init__(self, tensors: Iterable[tuple[str, TensorInfo]]) -> None:
        """Args: tensors: those to look at, all of one file."""
        self._tensors = sorted(tensors, key=lambda each: each[1].offset)
        self._at, self._kept = 0, b""
        self.broken: list[str] = []

    def see(self, chunk: bytes) -> None:
        """The next bytes of the file."""
        data, start = self._kept + chunk, self._at - len(self._kept)
        self._at += len(chunk)
        self._kept = data[-LARGEST:]  # an element may lie across two chunks
        while self._tensors and self._tensors[0][1].offset + self._tensors[0][1].nbytes <= start:
            self._tensors.pop(0)
        for name, info in self._tensors:
            if info.offset >= self._at:
                break
            if name not in self.broken and not _finite(info, data, start):
                self.broken.append(name)


def _finite(info: TensorInfo, data: bytes, start: int) -> bool:
    """Whether the elements of a tensor that lie whole in `data`, bytes from `start` on, are finite."""
    kind, exponent = EXPONENTS[info.dtype]
    size = info.dtype.itemsize
    first = max(0, -(-(start - info.offset) // size)) * size + info.offset
    count = (min(info.offset + info.nbytes, start + len(data)) - first) // size
    if count <= 0:
        return True
    bits = torch.frombuffer(bytearray(data[first - start : first - start + count * size]), dtype=kind)
    return int((bits & exponent).max()) < exponent
