"""How the latents move in one step of the loop: plainly, guided by a negative prompt, masked, or edited.

A move queues runs of the denoiser and of glue graphs, and nothing else, so that a GPU can record it. The loop
owns its move, and hands itself over at every step: neither keeps the other alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from flux_trt.runtime.backend import Buffer
from flux_trt.runtime.course import Course, Edit, Known

if TYPE_CHECKING:
    from flux_trt.runtime.loop import Loop


class Move(Protocol):
    """One way to move."""

    def step(self, loop: Loop, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """Queue step `index`: the new latents, and a buffer that may be overwritten."""


def move(loop: Loop, course: Course) -> Move:
    """The move of a course, with all that it needs in the backend's memory."""
    if course.edit:
        return Edited(loop, course, course.edit)
    found = Plain() if course.scale is None else Guided(loop, course.scale)
    return Masked(loop, course, course.known, found) if course.known else found


class Plain:
    """The Euler step that is in the denoiser's graph."""

    def step(self, loop: Loop, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """One run of the denoiser."""
        loop.denoise(index, now, {"next_latents": spare})
        return spare, now


class Guided:
    """True classifier-free guidance: prompt and negative as one batch (diffusers' `true_cfg_scale`)."""

    def __init__(self, loop: Loop, scale: float) -> None:
        self._scale = loop.put("scale", np.array([scale], np.float32))
        self._velocity = loop.room("velocity", loop.shape.rows)

    def step(self, loop: Loop, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """Both velocities, then their combination and the Euler step for both halves."""
        loop.denoise(index, now, {"velocity": self._velocity})
        pairs = {"latents": now, "dt": loop.dt(index), "velocity": self._velocity}
        inputs = {name: loop.pair(buffer) for name, buffer in pairs.items()}
        loop.glue("cfg", {**inputs, "scale": self._scale}, {"next_latents": loop.pair(spare)})
        return spare, now


class Masked:
    """Any move, after which what the mask leaves alone is put back at the step's noise level."""

    def __init__(self, loop: Loop, course: Course, known: Known, inner: Move) -> None:
        self._inner = inner
        parts = {"source": known.source, "noise": known.noise, "mask": known.mask}
        self._known = {
            name: loop.put(name, np.concatenate([part] * course.copies)) for name, part in parts.items()
        }
        self._sigma = loop.spread("sigma", course.levels[1:, None])

    def step(self, loop: Loop, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
        """The inner move, then the paste."""
        moved, free = self._inner.step(loop, index, now, spare)
        inputs = {**self._known, "latents": moved, "sigma": self._sigma[index]}
        loop.glue("paste", inputs, {"next_latents": free})
        return free, moved


class Edited:
    """FlowEdit: the picture's latents follow the difference of two velocities, then a few plain steps.

    Source: Kulikov et al. 2024, "FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models",
    algorithm 1, and `FlowEditFLUX` of its repository.
    """

    def __init__(self, loop: Loop, course: Course, edit: Edit) -> None:
        self._edit = edit
        self._first_plain = course.steps - edit.plain
        self._source = loop.put("source", edit.source)
        self._noise = loop.spread("noise", edit.noise)
        self._sigma = loop.spread("sigma", course.levels[:-1, None])
        self._stride = loop.spread("stride", np.diff(course.levels)[:, None] / np.float32(edit.average))
        self._velocity = loop.room("velocity", loop.shape.rows)
        self._both = loop.room("pair", loop.shape.rows)
        self._third = self._room = loop.room("third", loop.shape.batch)

    def step(self, loop: Loop, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
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

    def _move(self, loop: Loop, index: int, now: Buffer, spare: Buffer) -> tuple[Buffer, Buffer]:
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

    def _mix(self, loop: Loop, index: int, now: Buffer, draw: int) -> None:
        inputs = {
            "latents": now,
            "source": self._source,
            "noise": self._noise[draw],
            "sigma": self._sigma[index],
        }
        loop.glue("mix", inputs, {"pair": loop.pair(self._both)})
