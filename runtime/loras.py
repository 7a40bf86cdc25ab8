"""The LoRAs of a pipeline: those that are set, those that were read, and those in the backend's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flux_trt.runtime.backends.protocols import Backend
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.record import StageName
from flux_trt.runtime.lora.chosen import Chosen, LoraLike, chosen
from flux_trt.runtime.sampling.adapted import Adapted, Shelf, Slots, instead_of


class Loras:
    """See `Pipeline.set_loras`; errors are its own."""

    def __init__(
        self, bundle: Bundle, backend: Backend, given: Sequence[LoraLike], shelf: Shelf | None = None
    ) -> None:
        """With those that are `given` set; some may have been read already, and lie on the shelf."""
        self._bundle, self._shelf = bundle, shelf or Shelf(bundle)
        self._slots = Slots(backend, bundle.manifest.adapters)
        self.set(given)

    def set(self, given: Sequence[LoraLike]) -> None:
        """Take them where a call says nothing else."""
        wanted = chosen(given) or ()
        self._shelf.of(wanted)
        self.own = wanted
        """As they are set."""

    def instead(self, loras: Sequence[Chosen] | None = None) -> dict[StageName, StageName]:
        """Plain stage -> the one that runs instead with these LoRAs; None: with those that are set."""
        return instead_of(self._bundle, self._shelf.of(self.own if loras is None else loras))

    @contextmanager
    def lent(self, loras: Adapted | Sequence[Chosen] | None = None) -> Iterator[Adapted]:
        """LoRAs in the backend's memory, until the end of the block.

        Args:
            loras: from `chosen`, or lent already. None: those that are set.
        """
        if isinstance(loras, Adapted):
            yield loras
            return
        with self._slots.lent(self._shelf.of(self.own if loras is None else loras)) as found:
            yield found

    def close(self) -> None:
        """Let go what nobody uses."""
        self._slots.close()
