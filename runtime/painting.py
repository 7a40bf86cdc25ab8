"""One request on its way through a pipeline, batch by batch: from prompts and pictures to what is painted."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.backends.memory import MemoryMode
from flux_trt.runtime.backends.protocols import Backend, Buffer, Graphs
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import DENOISER, Flow
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.conditioned import Values, asked, conditioned
from flux_trt.runtime.course import Course
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
from flux_trt.runtime.sampling.together import Waiting
from flux_trt.runtime.sampling.trajectory import Trajectory
from flux_trt.runtime.step import Step, Walk, expect_finite, walked
from flux_trt.runtime.taken import expect_taken
from flux_trt.runtime.tasks.compose import compose
from flux_trt.runtime.tasks.encoded import encode_pictures
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.tasks.wording import Words
from flux_trt.runtime.texts import Encoded, Texts, lengths
from flux_trt.runtime.turn import Turn

Floats = npt.NDArray[np.float32]
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

    @property
    def graphs(self) -> Graphs:
        """The stages, by name."""

    @property
    def windows(self) -> Sequence[Window]:
        """What the text encoders see of prompts, in their order."""

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
    conditions: Sequence[Values]
    """What the encoders give; then what the denoiser takes: in one piece, or where windows differ, for each
    copy of its pictures."""
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
        self._encoding: dict[str, float] = {}
        self._sequential = stages.memory == "sequential"
        texts = dict.fromkeys(() if stages.fixed else request.texts(slice(None)))
        self._lengths = {words: lengths(stages.windows, words) for words in texts}
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
        self.prepare()
        batches = list(self._together())
        # Several go through a stage together if stages take turns, so that few are loaded.
        together = GROUP if self._sequential else 1
        for first in range(0, len(batches), together):
            some, after = batches[first : first + together], batches[first + together :]
            group = self._batches(some, after if self._sequential else (), more=not first)
            yield from self._pictures(group[0], self._walk(group))
            for batch in group[1:]:
                with self._to.turn:
                    images = self._decode(batch)
                yield from self._pictures(batch, images)
        with self._to.turn:
            self._to.kept.forget()

    def _together(self) -> Iterator[slice]:
        """Pictures that are painted together: neighbours whose texts are equally long."""
        if self._to.fixed:
            yield from self._request.batches()
            return
        alike = [
            [self._lengths[words] for words in self._request.texts(slice(index, index + 1))]
            for index in range(len(self._request))
        ]
        for chosen in self._request.batches():
            first = chosen.start
            for index in range(chosen.start + 1, chosen.stop + 1):
                if index == chosen.stop or alike[index] != alike[first]:
                    yield slice(first, index)
                    first = index

    def prepare(self) -> None:
        """Look at the shapes, and encode the pictures that are given.

        Raises:
            BackendError: engines that were built for other shapes, or a stage that failed.
        """
        request, to = self._request, self._to
        instead = to.loras.instead(request.loras)
        longest = max((length for each in self._lengths.values() for length in each), default=None)
        expect_taken(to.backend, to.bundle.manifest, to.flow, request, to.tiling, instead, longest)
        with _timed(self._encoding, "encode"):
            self._encoded = encode_pictures(request, self._encode_picture())

    def begin(self, index: int, loop_of: Callable[[LoopShape, Waiting], Loop]) -> Course:
        """Picture `index` at its first step, to be walked beside others; see `Stepwise.begin`.

        Args:
            index: of the request, whose pictures `prepare` has encoded.
            loop_of: makes a loop of a shape whose runs wait.
        """
        to = self._to
        (batch,) = self._batches([slice(index, index + 1)], (), more=not index)
        waiting = Waiting()
        with to.turn, ExitStack() as lent:
            adapted = lent.enter_context(to.loras.lent(self._request.loras))
            loop = loop_of(of := self._shape(batch, adapted), waiting)
            self._condition(batch, loop.conditioning, adapted)
            loop.begin(batch.trajectory, batch.conditions[0], adapted, *batch.conditions[1:])
            loan = lent.pop_all()
        start = time.perf_counter()

        def finish(last: Buffer) -> Painted:
            batch.seconds["denoise"] = round(time.perf_counter() - start, 4)
            with to.turn:
                batch.packed = _targets(last, batch.trajectory)
                images = self._decode(batch)
                loan.close()
            (painted,) = self._pictures(batch, images)
            return painted

        walk = Walk(loop, batch.trajectory, to.bundle.stage(DENOISER).precision, index)
        course = Course(walk, waiting, of.place, of.rows, finish)
        weakref.finalize(course, loan.close)  # the LoRAs of one that is dropped
        return course

    def _batches(self, some: Sequence[slice], after: Sequence[slice], more: bool) -> list[Batch]:
        """Pictures that are painted together, their prompts encoded, and those of `after` if they fit."""
        request, encoding = self._request, self._encoding
        with _timed(encoding, "encode", more=more):
            needed = [text for chosen in some for text in request.texts(chosen)]
            self._texts.bring(needed, map(request.texts, after))
        return [
            Batch(
                chosen,
                compose(request, self._encoded, chosen, self._to.bundle.manifest),
                dict(encoding),
                self._texts.of(request.texts(chosen), request.copies),
            )
            for chosen in some
        ]

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
                batch.conditions = [
                    {name: _on_host(value) for name, value in values.items()} for values in batch.conditions
                ]
            for batch in group:
                with self._loop(batch, adapted) as loop:
                    self._denoise(batch, loop, adapted)
                    batch.packed = [_on_host(each) for each in batch.packed]
            return self._decode(group[0])

    @contextmanager
    def _loop(self, batch: Batch, adapted: Adapted) -> Iterator[Loop]:
        with self._to.loops.lent(self._shape(batch, adapted)) as loop:
            yield loop

    def _shape(self, batch: Batch, adapted: Adapted) -> LoopShape:
        texts = [self._to.flow.text(values) for values in batch.conditions]
        return LoopShape.of(batch.trajectory, texts[0], adapted, *texts[1:])

    def _condition(self, batch: Batch, into: Sequence[Mapping[str, Buffer]] | None, adapted: Adapted) -> None:
        with _timed(batch.seconds, "condition"):
            guidance, trajectory = self._request.guidances(batch.chosen), batch.trajectory
            copies = trajectory.copies // len(batch.conditions)
            references = beside.seen(trajectory, self._to.bundle.manifest.model.positions, copies)
            to, text = self._to, batch.conditions
            found = asked(to.bundle, to.flow, text, trajectory.levels, guidance, references)
            batch.conditions = conditioned(to.bundle, to.flow, to.graphs, to.kept, found, into, adapted)

    def _denoise(self, batch: Batch, loop: Loop, adapted: Adapted) -> None:
        """Walk to the last latents; on a GPU the loop may be a single launch."""
        request, trajectory = self._request, batch.trajectory
        precision, gpu = self._to.bundle.stage(DENOISER).precision, self._to.backend.gpu
        rows = len(trajectory.start)

        def tell(steps: int) -> None:
            done = batch.chosen.start * request.moves + steps * rows
            self._progress("denoise", done, len(request) * request.moves)

        with _timed(batch.seconds, "denoise"):
            loop.begin(trajectory, batch.conditions[0], adapted, *batch.conditions[1:])
            batch.conditions = []
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
