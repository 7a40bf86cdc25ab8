"""What the text encoders have made of the last prompts, kept by what they have read, within a bound."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends.protocols import Graphs
from flux_trt.runtime.bundle.record import StageName

Floats = npt.NDArray[np.float32]
Encoded = Mapping[str, Floats]


class Encodings:
    """The last that were used, up to so many bytes on the host."""

    def __init__(self, most: int = 0) -> None:
        """Keep none yet.

        Args:
            most: bytes; FLUX.1's take 8 MB a prompt. 0: nothing is kept.
        """
        self.most = most
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        self._bytes = 0

    def run(
        self, graphs: Graphs, name: StageName, given: Mapping[str, npt.NDArray[np.int64]]
    ) -> Mapping[str, Floats]:
        """What an encoder makes of these tokens; it runs only where that is not kept.

        Args:
            graphs: where the encoder is.
            name: of the stage.
            given: all that it takes.

        Returns:
            Arrays on the host, which are not to be written to.
        """
        key = _key(name, given)
        found = self._kept.get(key)
        if found is None:
            made = graphs[name].run(given)
            found = self._kept[key] = {each: np.array(buffer.numpy()) for each, buffer in made.items()}
            self._bytes += _size(found)
        self._kept.move_to_end(key)
        while self._bytes > self.most:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return found

    def forget(self) -> None:
        """Let all go."""
        self._kept.clear()
        self._bytes = 0


def _key(name: StageName, given: Mapping[str, npt.NDArray[np.int64]]) -> str:
    digest = hashlib.sha256(name.encode())
    for each, array in sorted(given.items()):
        digest.update(f"{each} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _size(encoded: Encoded) -> int:
    return sum(each.nbytes for each in encoded.values())
