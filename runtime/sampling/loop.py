"""The denoising loop of one shape: its buffers, its steps, and on a GPU its recording.

On a GPU the buffers keep their addresses from picture to picture, so that the whole loop can be recorded as
one CUDA graph and launched again. Nothing is copied and nobody waits between steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends.device import DeviceBuffer, Launch
from flux_trt.runtime.backends.memory import shape
from flux_trt.runtime.backends.protocols import Backend, Buffer, Graphs
from flux_trt.runtime.bundle.flow import DENOISER, Flow
from flux_trt.runtime.bundle.manifest import GlueName, Manifest
from flux_trt.runtime.errors import BackendError, GpuMemoryError
from flux_trt.runtime.pictures.latents import Grid
from flux_trt.runtime.sampling import positions
from flux_trt.runtime.sampling.adapted import PLAIN, Adapted
from flux_trt.runtime.sampling.before import Before
from flux_trt.runtime.sampling.conditions import Condition
from flux_trt.runtime.sampling.moves import move
from flux_trt.runtime.sampling.trajectory import Solver, Trajectory

Floats = npt.NDArray[np.float32]

SECOND = "_second"
ENDS = ("", SECOND)
"""Of the names of buffers, for each run of the denoiser."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopShape:
    """All that the shapes of the loop's buffers, and its runs, depend on."""

    steps: int
    batch: int
    text: int
    """Tokens of the text."""
    grids: tuple[Grid, ...]
    """Of the target, then of the reference pictures."""
    copies: int = 1
    """How often each picture goes through the denoiser at once."""
    masked: bool = False
    average: int = 0
    """Noises per step of an edit; 0 for no edit."""
    plain: int = 0
    """Plain steps at the end of an edit."""
    beside: tuple[Grid, ...] = ()
    """Of reference pictures that are no part of the latents."""
    solver: Solver = "euler"
    adapted: tuple[object, ...] = ()
    """The shapes of LoRAs: a recording with some stays while another without is launched."""
    second: int | None = None
    """Tokens of the second copies' text where they go through the denoiser by themselves; None: with the
    first ones."""

    @classmethod
    def of(
        cls, trajectory: Trajectory, text: int, adapted: Adapted = PLAIN, second: int | None = None
    ) -> LoopShape:
        """The shape of a trajectory with so many text tokens, and LoRAs."""
        return cls(
            second=second,
            steps=trajectory.steps,
            batch=len(trajectory.start),
            text=text,
            grids=trajectory.grids,
            copies=trajectory.copies,
            masked=trajectory.known is not None,
            average=trajectory.edit.average if trajectory.edit else 0,
            plain=trajectory.edit.plain if trajectory.edit else 0,
            beside=trajectory.beside.grids if trajectory.beside else (),
            solver=trajectory.solver,
            adapted=adapted.shapes,
        )

    @property
    def tokens(self) -> int:
        """Of the picture and its references."""
        return sum(rows * columns for rows, columns in self.grids)

    @property
    def rows(self) -> int:
        """Of the latents."""
        return self.batch * self.copies

    @property
    def texts(self) -> tuple[int, ...]:
        """Tokens of the text in each run of the denoiser for a velocity of all rows."""
        return (self.text,) if self.second is None else (self.text, self.second)

    @property
    def at_once(self) -> int:
        """Rows of each of these runs."""
        return self.rows // len(self.texts)

    @property
    def place(self) -> tuple[object, ...]:
        """What the rotation tables depend on."""
        return self.texts, self.grids, self.beside


class Loop:
    """The denoising loop for pictures of one shape."""

    def __init__(
        self,
        backend: Backend,
        manifest: Manifest,
        flow: Flow,
        graphs: Graphs,
        of: LoopShape,
        record: bool = True,
    ) -> None:
        """Make the buffers and upload the rotation tables.

        Args:
            backend: where the loop runs.
            manifest: of the bundle.
            flow: of the bundle.
            graphs: the denoiser and the glue.
            of: the shape.
            record: launch the loop as a whole from its second run on, where that is possible.

        Raises:
            GpuMemoryError: the buffers do not fit.
        """
        self.shape = of
        self._backend, self._graphs, self._flow = backend, graphs, flow
        self._channels = manifest.model.channels
        types = {each.name: np.dtype(each.dtype) for each in manifest.stages[DENOISER].inputs}
        self._types = types | {f"{name}{SECOND}": kind for name, kind in types.items()}
        self._held: dict[str, DeviceBuffer] = {}
        self._recordable = record and backend.gpu is not None
        self._launch: Launch | None = None
        self._recorded_at: tuple[object, ...] = ()
        self._plain_at: tuple[object, ...] = ()
        self._levels: Floats | None = None
        self._rows: dict[str, list[DeviceBuffer]] = {}
        self._conditions: list[dict[str, Condition]] = []
        self._adapted = PLAIN
        self.conditioning: list[dict[str, DeviceBuffer]] | None = None
        """On a GPU, where the stages before the loop should write for each run, so that nothing is copied."""
        self._own: list[dict[str, Buffer]] = []
        rule = manifest.model.references
        turned = rule is not None and rule.enters == "input"
        grids = (*of.grids, *(of.beside if turned else ()))
        for text, end in zip(of.texts, ENDS, strict=False):
            cos, sin = positions.rotations(manifest.model.positions, text, grids)
            self._own.append({"cos": self.put(f"cos{end}", cos), "sin": self.put(f"sin{end}", sin)})
        reference = sum(rows * columns for rows, columns in of.beside)
        known = {"steps": of.steps, "batch": of.at_once, "tokens": of.tokens, "reference": reference}
        self._before = Before(backend, manifest, flow, graphs, known | {"text": of.text})
        if backend.gpu:
            self.conditioning = []
            for text in of.texts:
                made = {
                    each.name: backend.gpu.empty(shape(each, known | {"text": text}), each.dtype)
                    for name in flow.before
                    for each in manifest.stages[name].outputs
                    if not self.conditioning or each.name in flow.worded
                }
                self.conditioning.append({**(self.conditioning[0] if self.conditioning else {}), **made})

    def begin(
        self,
        trajectory: Trajectory,
        conditions: Mapping[str, Buffer | Floats],
        adapted: Adapted = PLAIN,
        second: Mapping[str, Buffer | Floats] | None = None,
    ) -> None:
        """Set the loop to its first step.

        Args:
            trajectory: of this loop's shape; its arrays stay as they are.
            conditions: what is taken from the stages before, by name: a buffer is used where it is, an array
                is uploaded.
            adapted: LoRAs, lent for as long as the loop walks.
            second: likewise for the second copies, where they go through the denoiser by themselves.
        """
        self._adapted = adapted
        of = self.shape
        if self._levels is None or not np.array_equal(trajectory.levels, self._levels):
            # Reference tokens stay as they are: their dt is 0.
            moving = (np.arange(of.tokens) < trajectory.target)[:, None]
            dt = np.diff(trajectory.levels)[:, None, None, None] * moving.astype(np.float32)
            self._dt = self.spread("dt", np.broadcast_to(dt, (of.steps, of.rows, of.tokens, 1)))
            if of.plain or of.second is not None:
                self._dt_second = self.spread(
                    "dt_second", np.broadcast_to(dt, (of.steps, of.batch, of.tokens, 1))
                )
            self._levels = trajectory.levels.copy()
        given = [conditions, *([second] if second is not None else [])]
        halved = bool(of.plain) and of.second is None
        self._conditions = [
            {
                name: Condition.of(
                    name,
                    self._flow.given[name].dims,
                    self._place(name, end, number, value[name]),
                    self._apart,
                    halved,
                )
                for name in self._flow.conditions
            }
            for number, (value, end) in enumerate(zip(given, ENDS, strict=False))
        ]
        self._before.begin(adapted)
        if trajectory.condition is not None:
            condition = np.concatenate([trajectory.condition] * (of.copies // len(of.texts)))
            for own in self._own:
                own["condition"] = self.put("condition", condition)
        copies = 1 if trajectory.edit else of.copies
        self._now = self.put("latents", np.concatenate([trajectory.start] * copies))
        self._spare = self.room("following", of.batch * copies)
        self._move = move(self, trajectory)

    def steps(self) -> Iterator[tuple[Buffer, Buffer]]:
        """Queue step by step: what the step's velocity was taken at, and the latents after it.

        The first is overwritten by the next step, the second by the step after that.
        """
        now, spare = self._now, self._spare
        for index in range(self.shape.steps):
            before = now
            now, spare = self._move.step(self, index, now, spare)
            self._last = now
            yield self._move.origin(self, index, before), now

    def run(self) -> Buffer:
        """Queue all steps; the last latents.

        The first run of a shape goes step by step: TensorRT must have run a shape before it can be recorded,
        and a single picture has nothing to gain. A second run records the loop, and from then on it is one
        launch. When recording fails, the loop goes on step by step.
        """
        here = self._where()
        if self._launch is not None and self._recorded_at != here:
            self.close()
        if self._recordable and self._launch is None and self._plain_at == here:
            self._record()
            self._recorded_at = here
        if self._launch is not None:
            self._launch()
        else:
            for _ in self.steps():
                pass
            self._plain_at = self._where()
        return self._last

    def denoise(self, index: int, now: Buffer, into: Mapping[str, Buffer]) -> None:
        """Queue the runs of the denoiser at step `index` that all rows need."""
        if self.shape.second is None:
            self._run(0, index, now, self._dt[index], into)
            return
        for half in range(2):
            mine = {name: self.pair(buffer)[half] for name, buffer in into.items()}
            self._run(half, index, self.pair(now)[half], self._dt_second[index], mine)

    def denoise_second(self, index: int, now: Buffer, into: Mapping[str, Buffer]) -> None:
        """Queue one run of the denoiser for the second half of the text alone."""
        if self.shape.second is not None:
            self._run(1, index, now, self._dt_second[index], into)
            return
        given = {name: each.second(index) for name, each in self._conditions[0].items()}
        self._denoise({**self._own[0], **given, "latents": now, "dt": self._dt_second[index]}, into)

    def _run(self, which: int, index: int, now: Buffer, dt: Buffer, into: Mapping[str, Buffer]) -> None:
        given = {name: each.at(index) for name, each in self._conditions[which].items()}
        given = self._before.step(index, given)
        self._denoise({**self._own[which], **given, "latents": now, "dt": dt}, into)

    def _denoise(self, inputs: Mapping[str, Buffer], into: Mapping[str, Buffer]) -> None:
        graph = self._graphs[self._adapted.stage(DENOISER)]
        graph.run({**inputs, **self._adapted.given(DENOISER)}, into)

    def glue(self, name: GlueName, inputs: Mapping[str, Buffer], into: Mapping[str, Buffer]) -> None:
        """Queue one run of a glue graph."""
        self._graphs[name].run(inputs, into)

    def dt(self, index: int) -> Buffer:
        """The strides of step `index`, [rows, tokens, 1]."""
        return self._dt[index]

    def pair(self, buffer: Buffer) -> Buffer:
        """[2 x batch, ...] as [2, batch, ...]: the same memory."""
        return buffer.reshape(2, self.shape.batch, *buffer.shape[1:])

    def room(self, name: str, rows: int) -> Buffer:
        """A buffer [rows, tokens, channels] that this loop writes before it reads it."""
        dims = rows, self.shape.tokens, self._channels
        if self._backend.gpu is None:
            return self._backend.upload(np.zeros(dims, self._types["latents"]))
        if name not in self._held:
            self._held[name] = self._backend.gpu.empty(dims, self._types["latents"])
        return self._held[name]

    def put(self, name: str, array: Floats) -> Buffer:
        """The array in the backend's memory: on a GPU in a buffer of that name, made when it is first put.

        What the denoiser takes by that name gets the type of its contract; the rest is for glue, in float32.
        """
        gpu, kind = self._backend.gpu, self._types.get(name, np.dtype(np.float32))
        if gpu is None:
            return self._backend.upload(np.array(array, kind))
        if name not in self._held:
            self._held[name] = gpu.empty(array.shape, kind)
        gpu.write(self._held[name], np.ascontiguousarray(array, kind))
        return self._held[name]

    def spread(self, name: str, array: Floats) -> Buffer | Sequence[Buffer]:
        """The array in the backend's memory, each row of the first dim where a graph can read it."""
        return self._apart(name, self.put(name, array))

    @property
    def batch(self) -> int:
        """Pictures."""
        return self.shape.batch

    @property
    def rows(self) -> int:
        """Rows of the denoiser."""
        return self.shape.rows

    @property
    def recorded(self) -> bool:
        """Whether there is a recording of the loop."""
        return self._launch is not None

    def close(self) -> None:
        """Free the recording; the buffers go with the loop."""
        if self._launch is not None:
            self._launch.close()
            self._launch = None

    def _record(self) -> None:
        gpu = self._backend.gpu
        assert gpu is not None

        def work() -> None:
            for _ in self.steps():
                pass

        try:
            self._launch = gpu.record(work)
        except GpuMemoryError:
            raise
        except BackendError as fault:
            self._recordable = False
            _log.info("the denoising loop runs step by step: it cannot be recorded (%s)", fault)

    def _where(self) -> tuple[object, ...]:
        """What a recording depends on beside the loop's own buffers."""
        gpu = self._backend.gpu
        firsts = (each.at(0) for conditions in self._conditions for each in conditions.values())
        own = gpu.epoch if gpu else 0, self._adapted.places
        return (*own, *(each.pointer for each in firsts if isinstance(each, DeviceBuffer)))

    def _apart(self, name: str, buffer: Buffer) -> Buffer | Sequence[Buffer]:
        """A buffer of which every step takes a row."""
        if self._backend.gpu is None or not isinstance(buffer, DeviceBuffer):
            return buffer
        rows = self._backend.gpu.rows(buffer, self._rows.get(name))
        if rows[0].owner is not buffer.owner:
            self._rows[name] = rows
        return rows

    def _place(self, name: str, end: str, number: int, value: Buffer | Floats) -> Buffer:
        if not isinstance(value, np.ndarray):
            return value
        if self.conditioning and name in self.conditioning[number]:
            self._held[name + end] = self.conditioning[number][name]
        return self.put(name + end, value)
