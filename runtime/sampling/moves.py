"""How the latents move in one step of the loop: plainly, guided by a negative prompt, masked, or edited.

A move queues runs of the denoiser and of glue graphs, and nothing else, so that a GPU can record it. The loop
owns its move, and hands itself over at every step: neither keeps the other alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends.protocols import Buffer
from flux_trt.runtime.bundle.manifest import GlueName
from flux_trt.runtime.sampling.trajectory import Edit, Known, Trajectory

Floats = npt.NDArray[np.float32]


class Queue(Protocol):
    """What a move calls of the loop: runs are queued, buffers are the loop's."""

    @property
    def batch(self) -> int:
        """Pictures."""

    @property
    def rows(self) -> int:
        """Rows of the denoiser: a picture may have several."""

    def put(self, name: str, array: Floats) -> Buffer:
        """The array in the backend's memory."""

    def spread(self, name: str, array: Floats) -> Buffer | Sequence[Buffer]:
        """The array in the backend's memory, each row of the first dim where a graph can read it."""

    def room(self, name: str, rows: int) -> Buffer:
        """A buffer [rows, tokens, channels] that is written before it is read."""

    def pair(self, buffer: Buffer) -> Buffer:
        """[2 x batch, ...] as [2, batch, ...]: the same memory."""

    def dt(self, index: int) -> Buffer:
        """The strides of step `index`, [rows, tokens, 1]."""

    def denoise(self, index: int, now: Buffer, into: Mapping[str, Buffer]) -> None:
        """Queue one run of the denoiser at step `index` for all rows."""

    def denoise_second(self, index: int, now: Buffer, into: Mapping[str, Buffer]) -> None:
        """Queue one run of the denoiser for the second half of the text alone."""

    def glue(self, name: GlueName, inputs: Mapping[str, Buffer], into: Mapping[str, Buffer]) -> None:
        """Queue one run of a glue graph."""


class Move(Protocol):
    """One way to move."""

    def step(self, loop: Queue, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """Queue step `index`: the new latents, and a buffer that may be overwritten."""

    def origin(self, loop: Queue, index: int, before: Buffer) -> Buffer:
        """What step `index`, which is queued, has added its velocity to; it was given `before`."""


def move(loop: Queue, trajectory: Trajectory) -> Move:
    """The move of a trajectory, with all that it needs in the backend's memory."""
    if trajectory.edit:
        return Edited(loop, trajectory, trajectory.edit)
    second = trajectory.solver == "ab2"
    found: Move
    if trajectory.scale is not None:
        found = Guided(loop, trajectory.scale, Bend.of_velocities(loop, trajectory) if second else None)
    else:
        found = Second(loop, Bend.of_latents(loop, trajectory)) if second else Plain()
    return Masked(loop, trajectory, trajectory.known, found) if trajectory.known else found


class Plain:
    """The Euler step that is in the denoiser's graph."""

    def step(self, loop: Queue, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """One run of the denoiser."""
        loop.denoise(index, now, {"next_latents": spare})
        return spare, now

    def origin(self, loop: Queue, index: int, before: Buffer) -> Buffer:
        """The latents."""
        return before


class Bend:
    """How the velocity changes: what two of them, one step apart, add to an Euler step.

    The second-order Adams-Bashforth formula for steps h of any length, with v' the velocity of the step
    before, whose length was h':

        x + h v + h^2 / (2 h') (v - v')  =  x + h (v + h / (2 h') (v - v'))

    So it is added to the latents after an Euler step, or to the velocity before it. There is no step before
    the first, which is Euler's. Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
    section III.5, k = 2.
    """

    def __init__(self, loop: Queue, trajectory: Trajectory, share: Floats) -> None:
        """Args: share of the change for each step but the first, [steps - 1]."""
        tokens = trajectory.start.shape[1]
        moving = (np.arange(tokens) < trajectory.target)[:, None].astype(np.float32)
        bend = np.append(np.float32(0), share).astype(np.float32)[:, None, None, None] * moving
        self._bend = loop.spread("bend", np.broadcast_to(bend, (trajectory.steps, loop.rows, tokens, 1)))
        self._velocities = loop.room("velocity", loop.rows), loop.room("previous", loop.rows)

    @classmethod
    def of_latents(cls, loop: Queue, trajectory: Trajectory) -> Bend:
        """To be added to latents."""
        h = np.diff(trajectory.levels)
        return cls(loop, trajectory, h[1:] ** 2 / (2 * h[:-1]))

    @classmethod
    def of_velocities(cls, loop: Queue, trajectory: Trajectory) -> Bend:
        """To be added to the velocities themselves."""
        h = np.diff(trajectory.levels)
        return cls(loop, trajectory, h[1:] / (2 * h[:-1]))

    def velocity(self, index: int) -> Buffer:
        """Where step `index` leaves its velocity: two buffers take turns."""
        return self._velocities[index % 2]

    def add(self, loop: Queue, index: int, to: Buffer, into: Buffer) -> None:
        """Queue `into` = `to` and what the change of velocity adds; not for the first step."""
        inputs = {
            "latents": to,
            "bend": self._bend[index],
            "velocity": self.velocity(index),
            "previous": self.velocity(index - 1),
        }
        loop.glue("ab2", inputs, {"next_latents": into})


class Second:
    """The Euler step of the denoiser's graph, then what the change of velocity adds to it."""

    def __init__(self, loop: Queue, bend: Bend) -> None:
        self._bend = bend
        self._third = self._room = loop.room("bent", loop.rows)

    def step(self, loop: Queue, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """One run of the denoiser, and after the first step one of glue; `now` stays as it is."""
        loop.denoise(index, now, {"next_latents": spare, "velocity": self._bend.velocity(index)})
        if index == 0:
            self._third = self._room
            return spare, now
        bent, self._third = self._third, now
        self._bend.add(loop, index, spare, bent)
        return bent, spare

    def origin(self, loop: Queue, index: int, before: Buffer) -> Buffer:
        """The latents."""
        return before


class Guided:
    """True classifier-free guidance: prompt and negative as one batch (diffusers' `true_cfg_scale`)."""

    def __init__(self, loop: Queue, scale: float, bend: Bend | None = None) -> None:
        """Args: a `bend` of both velocities is that of their combination, which is linear in them."""
        self._scale = loop.put("scale", np.array([scale], np.float32))
        self._bend = bend
        self._velocity = loop.room("bent" if bend else "velocity", loop.rows)

    def step(self, loop: Queue, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """Both velocities, then their combination and the Euler step for both halves."""
        velocity = self._bend.velocity(index) if self._bend else self._velocity
        loop.denoise(index, now, {"velocity": velocity})
        if self._bend and index:
            self._bend.add(loop, index, velocity, self._velocity)
            velocity = self._velocity
        pairs = {"latents": now, "dt": loop.dt(index), "velocity": velocity}
        inputs = {name: loop.pair(buffer) for name, buffer in pairs.items()}
        loop.glue("cfg", {**inputs, "scale": self._scale}, {"next_latents": loop.pair(spare)})
        return spare, now

    def origin(self, loop: Queue, index: int, before: Buffer) -> Buffer:
        """The latents."""
        return before


class Masked:
    """Any move, after which what the mask leaves alone is put back at the step's noise level."""

    def __init__(self, loop: Queue, trajectory: Trajectory, known: Known, inner: Move) -> None:
        self._inner = inner
        parts = {"source": known.source, "noise": known.noise, "mask": known.mask}
        self._known = {
            name: loop.put(name, np.concatenate([part] * trajectory.copies)) for name, part in parts.items()
        }
        self._sigma = loop.spread("sigma", trajectory.levels[1:, None])
        self._third = self._room = loop.room("third", loop.rows)

    def step(self, loop: Queue, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """The inner move, then the paste; `now` stays as it is for those who ask for the origin."""
        if index == 0:
            self._third = self._room
        moved, free = self._inner.step(loop, index, now, spare)
        inputs = {**self._known, "latents": moved, "sigma": self._sigma[index]}
        pasted, self._third = self._third, free
        loop.glue("paste", inputs, {"next_latents": pasted})
        return pasted, moved

    def origin(self, loop: Queue, index: int, before: Buffer) -> Buffer:
        """The latents; what is put back lies on a straight line from its noise to the picture, too."""
        return before


class Edited:
    """FlowEdit: the picture's latents follow the difference of two velocities, then a few plain steps.

    Source: Kulikov et al. 2024, "FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models",
    algorithm 1, and `FlowEditFLUX` of its repository.
    """

    def __init__(self, loop: Queue, trajectory: Trajectory, edit: Edit) -> None:
        self._edit = edit
        self._first_plain = trajectory.steps - edit.plain
        self._source = loop.put("source", edit.source)
        self._noise = loop.spread("noise", edit.noise)
        self._sigma = loop.spread("sigma", trajectory.levels[:-1, None])
        self._stride = loop.spread("stride", np.diff(trajectory.levels)[:, None] / np.float32(edit.average))
        self._velocity = loop.room("velocity", loop.rows)
        self._both = loop.room("pair", loop.rows)
        self._third = self._room = loop.room("third", loop.batch)

    def step(self, loop: Queue, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """A step of the edit, or a plain one for the target prompt alone."""
        if index == 0:
            self._third = self._room
        if index < self._first_plain:
            return self._move(loop, index, now, spare)
        if index == self._first_plain:
            self._mix(loop, index, now, self._first_plain * self._edit.average)
            loop.denoise_second(index, loop.pair(self._both)[1], {"next_latents": spare})
        else:
            loop.denoise_second(index, now, {"next_latents": spare})
        return spare, now

    def origin(self, loop: Queue, index: int, before: Buffer) -> Buffer:
        """The latents, but for the first plain step: it goes on from the target's half of the pair."""
        return loop.pair(self._both)[1] if index == self._first_plain else before

    def _move(self, loop: Queue, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        moved, free = now, [spare, self._third]
        for draw in range(self._edit.average):
            self._mix(loop, index, now, index * self._edit.average + draw)
            loop.denoise(index, self._both, {"velocity": self._velocity})
            into = free.pop(0)
            inputs = {
                "latents": moved,
                "dt": self._stride[index],
                "velocity": loop.pair(self._velocity),
            }
            loop.glue("edit", inputs, {"next_latents": into})
            if moved is not now:
                free.append(moved)
            moved = into
        self._third = free[0]
        return moved, now

    def _mix(self, loop: Queue, index: int, now: Buffer, draw: int) -> None:
        inputs = {
            "latents": now,
            "source": self._source,
            "noise": self._noise[draw],
            "sigma": self._sigma[index],
        }
        loop.glue("mix", inputs, {"pair": loop.pair(self._both)})
