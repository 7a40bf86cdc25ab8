"""One request on its way through a pipeline, batch by batch: from prompts and pictures to what is painted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.backends.memory import MemoryMode
from flux_trt.runtime.backends.protocols import Backend, Buffer
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import DENOISER, Flow
from flux_trt.runtime.loras import Loras
from flux_trt.runtime.painted import Painted
from flux_trt.runtime.pictures import latents
from flux_trt.runtime.pictures.encoded import EncodedPicture
from flux_trt.runtime.pictures.vae import Tiling
from flux_trt.runtime.progress import Progress
from flux_trt.runtime.sampling import beside
from flux_trt.runtime.sampling.adapted import Adapted
from flux_trt.runtime.sampling.loop import Loop, LoopShape
from flux_trt.runtime.sampling.loops import Loops
from flux_trt.runtime.sampling.trajectory import Trajectory
from flux_trt.runtime.step import Step, expect_finite, walked
from flux_trt.runtime.taken import expect_taken
from flux_trt.runtime.tasks.compose import compose
from flux_trt.runtime.tasks.encoded import encode_pictures
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.tasks.wording import Words
from flux_trt.runtime.texts import Encoded, Texts
from flux_trt.runtime.turn import Turn

Floats = npt.NDArray[np.float32]
Values = Mapping[str, Buffer | Floats]
"""What stages give, by name."""
OnStep = Callable[[Step], None]
GROUP = 8  # batches whose modulation waits on the host at once in sequential mode; 0.1 GB each for FLUX.1
PROMPTS = 32  # that are kept encoded at least; 8 MB each for FLUX.1
AHEAD = 128  # the same in sequential mode, where each call of the encoders loads them


class Stages(Protocol):
    """What a painting calls of a pipeline."""

    @property
    def bundle(self) -> Bundle:
        """What to paint with."""

    @property
    def backend(self) -> Backend:
        """What runs its graphs."""

    @property
    def memory(self) -> MemoryMode:
        """What may be loaded at once."""

    @property
    def flow(self) -> Flow:
        """Which stage feeds which."""

    @property
    def turn(self) -> Turn:
        """At the graphs: what must not be torn apart is done in one."""

    @property
    def loops(self) -> Loops:
        """The denoising loops."""

    @property
    def kept(self) -> beside.Kept:
        """What was made of reference pictures."""

    @property
    def tiling(self) -> Tiling:
        """How large pictures are cut for the VAE."""

    @property
    def fixed(self) -> bool:
        """Whether every prompt is of the same length for the encoders."""

    def encode_apart(self, groups: Sequence[Sequence[Words]]) -> list[Encoded]:
        """Encode prompts, each group by itself."""

    def encode_picture(self, pixels: npt.NDArray[Any], progress: Progress | None) -> EncodedPicture:
        """Encode one picture."""

    def condition(
        self,
        text: Values,
        levels: Floats,
        guidance: Any,
        into: Mapping[str, Buffer] | None,
        references: Mapping[str, Floats] | None,
        adapted: Adapted | None,
    ) -> Values:
        """All that the denoiser needs of text and time."""

    @property
    def loras(self) -> Loras:
        """Those that are set, and any others."""

    def decode(
        self, packed: Buffer | Floats, grid: latents.Grid, progress: Progress | None
    ) -> list[Image.Image]:
        """Pictures of latents."""


@dataclass
class Batch:
    """Pictures that are painted together, as far as they are."""

    chosen: slice
    """Which of the request."""
    trajectory: Trajectory
    seconds: dict[str, float]
    """By stage."""
    conditions: Values
    """What the encoders give; then what the denoiser takes."""
    packed: Sequence[Buffer | Floats] = ()
    """The target pictures' latents, [batch, tokens, channels]: all in one, or one by one."""


class Painting:
    """A request, painted as its pictures are asked for; between two of them nothing is held."""

    def __init__(
        self,
        stages: Stages,
        request: Request,
        progress: Progress,
        on_step: OnStep | None = None,
        each_step: bool = False,
    ) -> None:
        """Do nothing yet; the arguments are those of `Pipeline.paint`."""
        self._to, self._request = stages, request
        self._progress, self._on_step, self._each_step = progress, on_step, each_step
        self._sequential = stages.memory == "sequential"
        # Where a window is as long as its prompt needs, a longer neighbour would change what becomes of it.
        self._texts = Texts(
            request.texts(slice(None)),
            request.batch if stages.fixed else 1,
            AHEAD if self._sequential else PROMPTS,
            stages.encode_apart,
            lambda done, total: progress("encode", done, total),
        )

    def __iter__(self) -> Iterator[Painted]:
        """Paint, batch by batch."""
        request, manifest = self._request, self._to.bundle.manifest
        instead = self._to.loras.instead(request.loras)
        expect_taken(self._to.backend, manifest, self._to.flow, request, self._to.tiling, instead)
        encoding: dict[str, float] = {}
        with _timed(encoding, "encode"):
            encoded = encode_pictures(request, self._encode_picture())
        batches = list(request.batches())
        # Several go through a stage together if stages take turns, so that few are loaded.
        together = GROUP if self._sequential else 1
        for first in range(0, len(batches), together):
            some, after = batches[first : first + together], batches[first + together :]
            with _timed(encoding, "encode", more=not first):
                needed = [text for chosen in some for text in request.texts(chosen)]
                self._texts.bring(needed, map(request.texts, after) if self._sequential else ())
            group = [
                Batch(
                    chosen,
                    compose(request, encoded, chosen, manifest),
                    dict(encoding),
                    self._texts.of(request.texts(chosen)),
                )
                for chosen in some
            ]
            yield from self._pictures(group[0], self._walk(group))
            for batch in group[1:]:
                with self._to.turn:
                    images = self._decode(batch)
                yield from self._pictures(batch, images)
        with self._to.turn:
            self._to.kept.forget()

    def _encode_picture(self) -> Callable[[npt.NDArray[Any]], EncodedPicture]:
        """Encode one and tell of it."""
        request, done = self._request, 0
        holes = zip(map(id, request.images), map(id, request.masks), strict=False)
        total = len({*map(id, (*request.images, *request.controls))}) + len(request.references)
        total += len(set(holes)) if request.task == "fill" else 0

        def encode(pixels: npt.NDArray[Any]) -> EncodedPicture:
            nonlocal done
            found = self._to.encode_picture(pixels, self._progress)
            done += 1
            self._progress("encode pictures", done, max(done, total))
            return found

        return encode

    def _walk(self, group: Sequence[Batch]) -> list[Image.Image]:
        """From text to the last latents; the first batch's pictures, since its latents may lie in the loop's.

        All in one turn: on a GPU the loop's buffers hold what one stage leaves for the next, and when stages
        take turns at being loaded, another thread would have them loaded anew.
        """
        with self._to.turn, self._to.loras.lent(self._request.loras) as adapted:
            if not self._sequential:
                (batch,) = group
                with self._loop(batch, adapted) as loop:
                    self._condition(batch, loop.conditioning, adapted)
                    self._denoise(batch, loop, adapted)
                    return self._decode(batch)
            for batch in group:
                self._condition(batch, None, adapted)
                batch.conditions = {name: _on_host(value) for name, value in batch.conditions.items()}
            for batch in group:
                with self._loop(batch, adapted) as loop:
                    self._denoise(batch, loop, adapted)
                    batch.packed = [_on_host(each) for each in batch.packed]
            return self._decode(group[0])

    @contextmanager
    def _loop(self, batch: Batch, adapted: Adapted) -> Iterator[Loop]:
        text = self._to.flow.text(batch.conditions)
        with self._to.loops.lent(LoopShape.of(batch.trajectory, text, adapted)) as loop:
            yield loop

    def _condition(self, batch: Batch, into: Mapping[str, Buffer] | None, adapted: Adapted) -> None:
        with _timed(batch.seconds, "condition"):
            guidance = self._request.guidances(batch.chosen)
            references = beside.seen(batch.trajectory, self._to.bundle.manifest.model.positions)
            levels = batch.trajectory.levels
            batch.conditions = self._to.condition(
                batch.conditions, levels, guidance, into, references, adapted
            )

    def _denoise(self, batch: Batch, loop: Loop, adapted: Adapted) -> None:
        """Walk to the last latents; on a GPU the loop may be a single launch."""
        request, trajectory = self._request, batch.trajectory
        precision, gpu = self._to.bundle.stage(DENOISER).precision, self._to.backend.gpu
        rows = len(trajectory.start)

        def tell(steps: int) -> None:
            done = batch.chosen.start * request.moves + steps * rows
            self._progress("denoise", done, len(request) * request.moves)

        with _timed(batch.seconds, "denoise"):
            loop.begin(trajectory, batch.conditions, adapted)
            batch.conditions = {}
            if gpu and not self._each_step and not self._on_step:
                last = loop.run()
                expect_finite(last, trajectory.steps, trajectory.steps, precision)
                tell(trajectory.steps)
            else:
                for step in walked(loop, trajectory, self._to.turn, precision, batch.chosen.start):
                    if gpu:
                        gpu.synchronize()
                    tell(step.index)
                    if self._on_step:
                        self._on_step(step)
                last = step.latents
            batch.packed = _targets(last, trajectory)

    def _decode(self, batch: Batch) -> list[Image.Image]:
        with _timed(batch.seconds, "decode"):
            parts, batch.packed = batch.packed, ()
            grid = self._request.grid
            return [image for part in parts for image in self._to.decode(part, grid, self._progress)]

    def _pictures(self, batch: Batch, images: Sequence[Image.Image]) -> Iterator[Painted]:
        request, pictures = self._request, len(self._request)
        self._progress("decode", batch.chosen.stop, pictures)
        for index, image in zip(range(pictures)[batch.chosen], images, strict=True):
            done, to = request.finished(image, index), self._to
            yield Painted.of(done, to.bundle, request, index, batch.seconds, to.backend, to.tiling)


def _targets(last: Buffer, trajectory: Trajectory) -> list[Buffer]:
    """The target pictures' latents, [batch, tokens, channels]: all in one, or one by one."""
    batch, tokens, channels = len(trajectory.start), *trajectory.start.shape[1:]
    if last.shape[0] != batch:  # both halves of a guided run are the same
        last = last.head(batch)
    if tokens == trajectory.target:
        return [last]
    return [last[row].head(trajectory.target).reshape(1, trajectory.target, channels) for row in range(batch)]


def _on_host(value: Buffer | Floats) -> Floats:
    """A value until it is used where it takes no GPU memory: a copy, for a view goes with its buffer."""
    return value if isinstance(value, np.ndarray) else np.array(value.numpy())


@contextmanager
def _timed(seconds: dict[str, float], stage: str, more: bool = False) -> Iterator[None]:
    """Note how long the block takes; with `more` on top of what is noted."""
    start = time.perf_counter()
    yield
    before = seconds.get(stage, 0.0) if more else 0.0
    seconds[stage] = round(before + time.perf_counter() - start, 4)
