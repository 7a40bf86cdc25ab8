"""What the denoiser takes from the stages before the loop: the same at every step, or a row for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flux_trt.runtime.backends.protocols import Buffer

Rows = Buffer | Sequence[Buffer]
Apart = Callable[[str, Buffer], Rows]
"""(name, buffer) -> its rows, each where a graph can read it."""


@dataclass(frozen=True)
class Condition:
    """One input of the denoiser, for all rows of a batch and for the second half of them alone."""

    whole: Buffer | None
    """What is the same at every step."""
    rows: Rows | None
    """What is not: a row for each step."""
    halves: Rows | None
    """[2, ...] halves of the batch, or two rows for each step; None where the batch has one for all."""

    @classmethod
    def of(cls, name: str, dims: Sequence[int | str], value: Buffer, apart: Apart, halved: bool) -> Condition:
        """From what a stage has given.

        Args:
            name: of the tensor.
            dims: of its contract: `steps` and `batch` come first where there are such.
            value: its values.
            apart: makes rows.
            halved: whether the second half of the batch will be asked for.
        """
        stepped = "steps" in dims[:1]
        halves = None
        if halved and "batch" in dims[: 1 + stepped]:
            steps, (batch, *rest) = (value.shape[0], value.shape[1:]) if stepped else (1, value.shape)
            halves = apart(f"{name}_halves", value.reshape(steps * 2, batch // 2, *rest))
        if stepped:
            return cls(None, apart(name, value), halves)
        return cls(value, None, halves)

    def at(self, step: int) -> Buffer:
        """For all rows of the batch."""
        if self.rows is not None:
            return self.rows[step]
        assert self.whole is not None
        return self.whole

    def second(self, step: int) -> Buffer:
        """For the second half of the batch; `halved` must have been asked for."""
        if self.halves is None:
            return self.at(step)
        return self.halves[2 * step + 1 if self.rows is not None else 1]
