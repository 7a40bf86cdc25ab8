"""The denoising loop of one shape: its buffers, its steps, and on a GPU its recording.

On a GPU the buffers keep their addresses from picture to picture, so that the whole loop can be recorded as
one CUDA graph and launched again. Nothing is copied and nobody waits between steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flux_trt.plugins.rope import rope_tables
from flux_trt.runtime import latents
from flux_trt.runtime.backend import Backend, Buffer, Graph
from flux_trt.runtime.device import DeviceBuffer, Launch
from flux_trt.runtime.errors import BackendError, GpuMemoryError
from flux_trt.runtime.manifest import Manifest
from flux_trt.runtime.memory import shape

Floats = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopShape:
    """All that the shapes of the loop's buffers depend on."""

    steps: int
    batch: int
    text: int
    """Tokens of the text."""
    grid: latents.Grid

    @property
    def tokens(self) -> int:
        """Of the picture."""
        return self.grid[0] * self.grid[1]


class Loop:
    """The denoising loop for pictures of one shape."""

    def __init__(self, backend: Backend, manifest: Manifest, of: LoopShape, record: bool = True) -> None:
        """Make the buffers and upload the rotation tables.

        Args:
            backend: where the loop runs.
            manifest: of the bundle.
            of: the shape.
            record: launch the loop as a whole from its second run on, where that is possible.

        Raises:
            GpuMemoryError: the buffers do not fit.
        """
        self.shape = of
        self._backend = backend
        self._held: dict[str, DeviceBuffer] = {}
        self._recordable = record and backend.gpu is not None
        self._launch: Launch | None = None
        self._recorded_at: tuple[object, ...] = ()
        self._plain_at: tuple[object, ...] = ()
        self._levels: Floats | None = None
        self._rows: dict[str, list[DeviceBuffer]] = {}
        self.conditioning: dict[str, Buffer] | None = None
        """On a GPU, where the conditioner should write, so that nothing need be copied."""
        model = manifest.model
        cos, sin = rope_tables(latents.positions(of.text, [of.grid]), model.rope_axes, model.rope_theta)
        self._tables = {"cos": self._put("cos", cos), "sin": self._put("sin", sin)}
        if backend.gpu:
            known = {"steps": of.steps, "batch": of.batch, "text": of.text}
            self.conditioning = {
                each.name: backend.gpu.empty(shape(each, known), each.dtype)
                for each in manifest.stages["conditioner"].outputs
            }

    def begin(
        self, start: Floats, levels: Floats, modulation: Buffer | Floats, context: Buffer | Floats
    ) -> None:
        """Set the loop to its first step.

        Args:
            start: [batch, tokens, channels] at noise level `levels[0]`; it stays as it is.
            levels: [steps + 1]; uploaded as `dt` only when they differ from the last picture's.
            modulation: [steps, batch, M, D]: a buffer is used where it is, an array is uploaded.
            context: [batch, T, D], likewise.
        """
        if self._levels is None or not np.array_equal(levels, self._levels):
            strides = np.diff(levels)[:, None, None, None]
            of = self.shape
            dt = np.broadcast_to(strides, (of.steps, of.batch, of.tokens, 1))
            self._dt = self._apart("dt", self._put("dt", dt))
            self._levels = levels.copy()
        self._modulation = self._apart("modulation", self._place("modulation", modulation))
        self._context = self._place("context", context)
        self._now = self._put("latents", start.copy())
        if "following" not in self._held:
            self._following = self._put("following", np.empty_like(start))

    def steps(self, denoiser: Graph) -> Iterator[Buffer]:
        """Queue step by step; the latents after each, overwritten by the step after the next."""
        now, following = self._now, self._following
        for index in range(self.shape.steps):
            inputs = {
                **self._tables,
                "context": self._context,
                "latents": now,
                "dt": self._dt[index],
                "modulation": self._modulation[index],
            }
            denoiser.run(inputs, into={"next_latents": following})
            now, following = following, now
            yield now

    def run(self, denoiser: Graph) -> Buffer:
        """Queue all steps; the last latents.

        The first run of a shape goes step by step: TensorRT must have run a shape before it can be recorded,
        and a single picture has nothing to gain. A second run records the loop, and from then on it is one
        launch. When recording fails, the loop goes on step by step.
        """
        here = self._where()
        if self._launch is not None and self._recorded_at != here:
            self.close()
        if self._recordable and self._launch is None and self._plain_at == here:
            self._record(denoiser)
            self._recorded_at = here
        if self._launch is not None:
            self._launch()
        else:
            for _ in self.steps(denoiser):
                pass
            self._plain_at = self._where()
        return self._now if self.shape.steps % 2 == 0 else self._following

    @property
    def recorded(self) -> bool:
        """Whether there is a recording of the loop."""
        return self._launch is not None

    def close(self) -> None:
        """Free the recording; the buffers go with the loop."""
        if self._launch is not None:
            self._launch.close()
            self._launch = None

    def _record(self, denoiser: Graph) -> None:
        gpu = self._backend.gpu
        assert gpu is not None

        def work() -> None:
            for _ in self.steps(denoiser):
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
        places = [
            each.pointer for each in (self._modulation[0], self._context) if isinstance(each, DeviceBuffer)
        ]
        return (gpu.epoch if gpu else 0, *places)

    def _apart(self, name: str, buffer: Buffer) -> Buffer | Sequence[Buffer]:
        """A buffer of which every step takes a row."""
        if self._backend.gpu is None or not isinstance(buffer, DeviceBuffer):
            return buffer
        rows = self._backend.gpu.rows(buffer, self._rows.get(name))
        if rows[0].owner is not buffer.owner:
            self._rows[name] = rows
        return rows

    def _place(self, name: str, value: Buffer | Floats) -> Buffer:
        return self._put(name, value) if isinstance(value, np.ndarray) else value

    def _put(self, name: str, array: Floats) -> Buffer:
        """The array in the backend's memory: on a GPU in a buffer of that name, made when it is first put."""
        gpu = self._backend.gpu
        if gpu is None:
            return self._backend.upload(array)
        if self.conditioning and name in self.conditioning:
            self._held[name] = self.conditioning[name]  # type: ignore[assignment]
        if name not in self._held:
            self._held[name] = gpu.empty(array.shape, array.dtype)
        gpu.write(self._held[name], np.ascontiguousarray(array))
        return self._held[name]
