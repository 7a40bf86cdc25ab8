"""LoRAs in a backend's memory: what a call of a stage takes of them, and where that lies.

On a GPU ranks are rounded up and buffers are written anew where they are, so that another LoRA of the same
rounded ranks moves no address: recordings and contexts stay. Buffers that a walk is using are never written.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from flux_trt.runtime.backends.device import DeviceBuffer
from flux_trt.runtime.backends.protocols import Backend, Buffer
from flux_trt.runtime.bundle.adapters import Adapters
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.record import StageName
from flux_trt.runtime.lora import factors
from flux_trt.runtime.lora.chosen import Chosen
from flux_trt.runtime.lora.factors import Factors, Floats

KEPT = 2
"""How many are kept that nobody uses; each takes up to 0.5 GB of FLUX.1 at rank 32."""


@dataclass(frozen=True)
class Adapted:
    """What LoRAs make of some stages; `PLAIN` is none."""

    key: str = ""
    """Stands for the LoRAs."""
    stages: Mapping[StageName, StageName] = field(default_factory=dict)
    """Plain stage -> the one that runs instead."""
    inputs: Mapping[StageName, Mapping[str, Buffer]] = field(default_factory=dict)
    """Plain stage -> what that takes more."""

    def stage(self, name: StageName) -> StageName:
        """The stage that runs as `name`."""
        return self.stages.get(name, name)

    def given(self, name: StageName) -> Mapping[str, Buffer]:
        """What it takes beside the inputs of `name`."""
        return self.inputs.get(name, {})

    @property
    def shapes(self) -> tuple[object, ...]:
        """Of all that is given more."""
        return tuple((name, each.shape) for inputs in self.inputs.values() for name, each in inputs.items())

    @property
    def places(self) -> tuple[object, ...]:
        """What a recording depends on: where all lies, and in which shapes; not what is there."""
        buffers = [(name, each) for inputs in self.inputs.values() for name, each in inputs.items()]
        return tuple(
            (name, each.shape, each.pointer) for name, each in buffers if isinstance(each, DeviceBuffer)
        )


PLAIN = Adapted()


class Shelf:
    """LoRAs read for a bundle, the last ones kept."""

    def __init__(self, bundle: Bundle) -> None:
        """Read none yet."""
        self._bundle = bundle
        self._kept: OrderedDict[str, Factors] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, wanted: Sequence[Chosen]) -> Factors | None:
        """The factors of LoRAs; None of none. Errors are those of `factors.read`."""
        if not wanted:
            return None
        with self._lock:
            key = factors.key_of(wanted)
            found = self._kept.pop(key, None) or factors.read(self._bundle, wanted)
            self._kept[key] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return found


def instead_of(bundle: Bundle, given: Factors | None) -> dict[StageName, StageName]:
    """Plain stage -> the one with branches that runs instead."""
    takes = bundle.manifest.adapters
    return {name: takes.stages[name] for name in given.arrays} if takes and given else {}


@dataclass
class _Slot:
    """Buffers of some shapes, and whose values are in them."""

    shapes: tuple[object, ...]
    adapted: Adapted
    users: int = 0


class Slots:
    """Buffers for LoRAs, each lent to those who paint with the same ones."""

    def __init__(self, backend: Backend, adapters: Adapters | None) -> None:
        """Make none yet."""
        self._backend, self._adapters = backend, adapters
        self._slots: list[_Slot] = []
        """The last used last."""
        self._lock = threading.RLock()

    @contextmanager
    def lent(self, given: Factors | None) -> Iterator[Adapted]:
        """The LoRAs in the backend's memory, until the end of the block; nobody writes there meanwhile.

        Raises:
            GpuMemoryError: they do not fit.
        """
        if given is None:
            yield PLAIN
            return
        with self._lock:
            slot = self._slot(given)
            slot.users += 1
        try:
            yield slot.adapted
        finally:
            with self._lock:
                slot.users -= 1
                self._drop(KEPT)

    def close(self) -> None:
        """Let go what nobody uses."""
        with self._lock:
            self._drop(0)

    def _slot(self, given: Factors) -> _Slot:
        found = next((each for each in self._slots if each.adapted.key == given.key), None)
        if found is None:
            arrays = {stage: dict(self._rounded(stage, each)) for stage, each in given.arrays.items()}
            shapes = tuple((name, each.shape) for every in arrays.values() for name, each in every.items())
            free = (each for each in self._slots if not each.users and each.shapes == shapes)
            found = next(free, None) if self._backend.gpu else None
            if found is None:
                self._drop(KEPT - 1)
                found = _Slot(shapes, PLAIN)
            inputs = {
                stage: {
                    name: self._put(found.adapted.given(stage).get(name), each)
                    for name, each in every.items()
                }
                for stage, every in arrays.items()
            }
            assert self._adapters is not None
            stages = {stage: self._adapters.stages[stage] for stage in arrays}
            found.adapted = Adapted(given.key, stages, inputs)
        self._slots = [*(each for each in self._slots if each is not found), found]
        return found

    def _put(self, there: Buffer | None, array: Floats) -> Buffer:
        gpu = self._backend.gpu
        if gpu is None or not isinstance(there, DeviceBuffer):
            return self._backend.upload(array)
        gpu.write(there, array)
        return there

    def _rounded(self, stage: StageName, arrays: Mapping[str, Floats]) -> Iterator[tuple[str, Floats]]:
        """The arrays; on a GPU filled up with zeros to the next rounded rank."""
        assert self._adapters is not None
        for branch in self._adapters.branches:
            if branch.stage == stage:
                down, up = arrays[branch.down], arrays[branch.up]
                more = branch.rounded(down.shape[2]) - down.shape[2] if self._backend.gpu else 0
                yield branch.down, np.pad(down, ((0, 0), (0, 0), (0, more))) if more else down
                yield branch.up, np.pad(up, ((0, 0), (0, more), (0, 0))) if more else up

    def _drop(self, keep: int) -> None:
        """Let go of what nobody uses all but the last `keep`."""
        free = [each for each in self._slots if not each.users]
        gone = free[: max(len(free) - keep, 0)]
        if gone and (gpu := self._backend.gpu):
            gpu.epoch += 1
        self._slots = [each for each in self._slots if all(each is not other for other in gone)]
