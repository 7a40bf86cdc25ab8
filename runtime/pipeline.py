"""The pipeline: tokenise, encode, condition, denoise, decode."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.loaded import Loaded, needs
from flux_trt.runtime.backends.memory import MemoryMode, way_out
from flux_trt.runtime.backends.protocols import Backend, Buffer, Device
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import DENOISER, VAE_DECODER, VAE_ENCODER, Flow, taken, together
from flux_trt.runtime.bundle.manifest import Precision
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.errors import PaintError
from flux_trt.runtime.painted import Painted, Step
from flux_trt.runtime.pictures import latents, vae, written
from flux_trt.runtime.pictures.encoded import EncodedPicture
from flux_trt.runtime.progress import Progress, silent
from flux_trt.runtime.sampling import beside, schedule
from flux_trt.runtime.sampling.loop import Loop, LoopShape
from flux_trt.runtime.sampling.trajectory import Trajectory
from flux_trt.runtime.taken import expect_taken
from flux_trt.runtime.tasks import wording
from flux_trt.runtime.tasks.apart import Part, apart, in_order
from flux_trt.runtime.tasks.arguments import EditArguments, GenerateArguments, PictureLike
from flux_trt.runtime.tasks.compose import compose
from flux_trt.runtime.tasks.encoded import encode_pictures
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.tasks.wording import Words

Floats = npt.NDArray[np.float32]
Values = Mapping[str, Buffer | Floats]
"""What stages give, by name."""
GROUP = 8  # batches whose modulation waits on the host at once in sequential mode; 0.1 GB each for FLUX.1
LOOPS = 4  # shapes whose buffers and recordings are kept on a GPU

_log = logging.getLogger(__name__)


class Pipeline:
    """A bundle that is loaded and ready to paint; a context manager, or `close` it."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        memory: MemoryMode = "resident",
        record: bool = True,
        tile: int | None = None,
    ) -> None:
        """Load the stages that text-to-image needs; `load` is the usual way.

        Args:
            bundle: what to paint with.
            backend: what runs its graphs; one that was made for this memory mode.
            memory: what may be loaded at once.
            record: on a GPU, launch the denoising loop as one CUDA graph from its second run on.
            tile: see `load`.

        Raises:
            FluxTrtError: a partial bundle, or a stage that the backend cannot run or that does not fit.
        """
        self.bundle = bundle
        self.backend = backend
        self.memory = memory
        self._record = record
        self._loops: OrderedDict[LoopShape, Loop] = OrderedDict()
        self._kept = beside.Kept(memory)
        self._tiling = vae.Tiling.of(bundle.manifest.model, tile)
        self.flow = Flow.of(bundle)
        self._precision = bundle.stage(DENOISER).precision
        self._windows = [
            (each.stage, Window(bundle.root, bundle.tokenizer(each.tokenizer)))
            for each in bundle.manifest.encoders
        ]
        if backend.gpu:
            backend.gpu.way_out = way_out(memory)
            needs(bundle, backend, memory, self.flow.stages).expect_fit(backend.gpu)
        self._graphs = Loaded(bundle, backend, memory, self.flow.stages)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        backend: str = "auto",
        device: Device = "auto",
        check: bool = True,
        memory: MemoryMode = "resident",
        record: bool = True,
        tile: int | None = None,
        engines: str | Path | None = None,
    ) -> Pipeline:
        """Open a bundle directory and load its stages.

        Args:
            bundle: what `flux-export build --out` has written.
            backend: see `backend.connect`.
            device: "cpu", "cuda", or "auto": the GPU where there is one.
            check: verify the SHA-256 of every file.
            memory: "resident", "sequential" or "streaming"; see `memory`.
            record: on a GPU, launch the denoising loop as one CUDA graph from its second run on.
            tile: pixels of the tiles that larger pictures are encoded and decoded in. None: tiles of 1024 for
                pictures of more than two megapixels; 0: never.
            engines: a folder with TensorRT engines beside those in the bundle.

        Raises:
            BundleError: a bundle that is not whole.
            BackendError: a backend, device or precision that does not work here, or too little memory.
        """
        opened = Bundle.open(bundle, check=False, engines=engines)
        connected = connect(backend, device, opened, memory, check)
        if check:
            opened.verify()
        return cls(opened, connected, memory, record, tile)

    def generate(
        self, prompt: str | Sequence[str], *, progress: Progress = silent, **asked: Unpack[GenerateArguments]
    ) -> list[Image.Image]:
        """Paint pictures from text, and from pictures.

        Args:
            prompt: one or several; the empty prompt is allowed.
            progress: told (what, done, total) after each prompt batch encoded, picture encoded, step denoised
                and batch decoded.
            asked: see `GenerateArguments`; what is left out is the bundle's default.

        Returns:
            The pictures, prompt by prompt; `image.info["flux_trt"]` has what was used, as JSON, and `save`
            puts it into the file.

        Raises:
            RequestError: something that the bundle cannot do.
            PaintError: latents that are not finite.
            BackendError: a stage that failed, for example without enough memory.
        """
        ask = partial(Request.of, self.bundle.manifest)
        return self._images(apart(ask, "prompt", prompt, dict(asked)), progress)

    def edit(
        self,
        image: PictureLike | Sequence[PictureLike],
        *,
        source: str | Sequence[str],
        target: str | Sequence[str],
        progress: Progress = silent,
        **asked: Unpack[EditArguments],
    ) -> list[Image.Image]:
        """Edit pictures with FlowEdit (Kulikov et al. 2024): from what they show to what they should show.

        Args:
            image: a picture, or one per target.
            source: what it shows.
            target: what it should show.
            progress: as in `generate`.
            asked: see `EditArguments`.

        Returns:
            The edited pictures. Errors are `generate`'s.
        """
        ask, given = partial(Request.of_edit, self.bundle.manifest), {"image": image, "source": source}
        return self._images(apart(ask, "target", target, given | dict(asked)), progress)

    def paint(self, request: Request, progress: Progress = silent) -> Iterator[Painted]:
        """Paint a request, batch by batch; every prompt is encoded once. Errors are `generate`'s."""
        manifest, pictures = self.bundle.manifest, len(request)
        expect_taken(self.backend, manifest, self.flow, request, self._tiling)
        encoding: dict[str, float] = {}
        with _timed(encoding, "encode"):
            texts = self._encode_once(request, progress)
            encoded = encode_pictures(request, partial(self.encode_picture, progress=progress))
        for group in self._groups(request):
            seconds = {chosen.start: dict(encoding) for chosen in group}
            trajectories = {chosen.start: compose(request, encoded, chosen, manifest) for chosen in group}
            conditioned: dict[int, Values] = {}
            for chosen in group:
                with _timed(seconds[chosen.start], "condition"):
                    text = together([texts[prompt] for prompt in request.texts(chosen)])
                    guidance = request.guidances(chosen)
                    conditioned[chosen.start] = self._condition(text, trajectories[chosen.start], guidance)
            packed: dict[int, list[Buffer | Floats]] = {}
            for chosen in group:
                trajectory, done = trajectories[chosen.start], chosen.start * request.moves

                def tell(steps: int, done: int = done, batch: int = len(trajectory.start)) -> None:
                    progress("denoise", done + steps * batch, pictures * request.moves)

                with _timed(seconds[chosen.start], "denoise"):
                    last = self._walk(trajectory, conditioned.pop(chosen.start), tell)
                    packed[chosen.start] = [self._keep(each) for each in _targets(last, trajectory)]
            for chosen in group:
                with _timed(seconds[chosen.start], "decode"):
                    parts = packed.pop(chosen.start)
                    images = [image for part in parts for image in self.decode(part, request.grid, progress)]
                progress("decode", chosen.stop, pictures)
                for index, image in zip(range(pictures)[chosen], images, strict=True):
                    done_image = request.finished(image, index)
                    took = seconds[chosen.start]
                    yield Painted.of(
                        done_image, self.bundle, request, index, took, self.backend, self._tiling
                    )
        self._kept.forget()

    def encode(self, prompts: Sequence[Words]) -> dict[str, Floats]:
        """Tokenise and encode prompts; text that is not read, or not as meant, is logged as a warning.

        Args:
            prompts: one text for all encoders, or one for each in their order.

        Returns:
            What the text encoders give, by name, each [len(prompts), ...].
        """
        found: dict[str, Floats] = {}
        seen = {
            name: window.of([wording.part(prompt, index) for prompt in prompts])
            for index, (name, window) in enumerate(self._windows)
        }
        for line in (*wording.cut(seen), *wording.literal(prompts)):
            _log.warning("%s", line)
        for name, through in seen.items():
            given = self._graphs[name].run(taken(self.bundle.stage(name), through.inputs))
            found |= {each: buffer.numpy() for each, buffer in given.items()}
        return found

    def encode_picture(self, pixels: npt.NDArray[Any], progress: Progress = silent) -> EncodedPicture:
        """Encode one picture: pixels [H, W, 3] of 0..255, sides multiples of the patch."""
        graph, model = self._graphs[VAE_ENCODER], self.bundle.manifest.model
        return vae.encode(graph, pixels, model, self._tiling, partial(progress, "encode tiles"))

    def condition(
        self,
        text: Values,
        levels: Floats,
        guidance: float | Floats | None,
        into: Mapping[str, Buffer] | None = None,
        references: Mapping[str, Floats] | None = None,
    ) -> Values:
        """All that the denoiser needs of text and time, for every step at once.

        Args:
            text: from `encode`, each [batch, ...].
            levels: [steps + 1], from `schedule.sigmas`.
            guidance: one, or [batch]. None for a model without guidance input.
            into: the buffers to write to, by name. None: new ones.
            references: from `beside.seen`, for a model that takes them so.

        Returns:
            What the denoiser takes beside the loop's own, by name; what differs from step to step is
            [steps, ...].
        """
        rows = next(iter(text.values())).shape[0]
        found: dict[str, Buffer | Floats] = {**text, **(references or beside.none(rows))}
        found["timesteps"] = schedule.timesteps(levels, self.bundle.manifest.schedule)
        if guidance is not None:
            found["guidance"] = np.full(rows, guidance, np.float32)
        for name in self.flow.before:
            stage = self.bundle.stage(name)
            there = into and {each.name: into[each.name] for each in stage.outputs}
            found |= self._kept.run(self._graphs, name, stage, taken(stage, found), there)
        return {name: found[name] for name in self.flow.conditions}

    def denoise(
        self,
        start: Floats,
        levels: Floats,
        conditions: Values,
        grid: latents.Grid,
    ) -> Iterator[Step]:
        """Walk the latents from noise to picture, one yield per step; stop whenever you like.

        Args:
            start: float32 [batch, tokens, channels] at noise level `levels[0]`.
            levels: [steps + 1], from `schedule.sigmas`.
            conditions: from `condition`.
            grid: of the picture.

        Raises:
            PaintError: latents that are not finite. On a GPU they are looked at after the last step only.
        """
        return self.walk(Trajectory(levels, start, (grid,)), conditions)

    def walk(self, trajectory: Trajectory, conditions: Values) -> Iterator[Step]:
        """`denoise` for any trajectory, whose rows are those of the conditions.

        Nothing leaves the device between steps: what a step takes of `conditions` is a view, and two buffers
        take turns as latents and next latents.
        """
        loop = self._loop(LoopShape.of(trajectory, self.flow.text(conditions)))
        loop.begin(trajectory, conditions)
        for index, now in enumerate(loop.steps(), 1):
            if now.on_host or index == trajectory.steps:
                _expect_finite(now, index, trajectory.steps, self._precision)
            yield Step(index, float(trajectory.levels[index]), now)

    def decode(
        self, packed: Buffer | Floats, grid: latents.Grid, progress: Progress = silent
    ) -> list[Image.Image]:
        """Pictures of latents [batch, tokens, channels]."""
        graph, model = self._graphs[VAE_DECODER], self.bundle.manifest.model
        pixels = vae.decode(graph, packed, grid, model, self._tiling, partial(progress, "decode tiles"))
        return [Image.fromarray(each) for each in pixels]

    save = staticmethod(written.write)
    """Write a picture as PNG, JPEG or WebP, by the name, with all that it was painted with."""

    def close(self) -> None:
        """Free all graphs and recordings; closing twice is harmless."""
        self._kept.forget()
        while self._loops:
            self._loops.popitem()[1].close()
        self._graphs.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _images(self, parts: list[Part], progress: Progress) -> list[Image.Image]:
        """The pictures of all parts of a call, in its order."""
        painted = ([each.image for each in self.paint(part, progress)] for part, _ in parts)
        return list(in_order(zip(painted, (places for _, places in parts), strict=True)))

    def _encode_once(self, request: Request, progress: Progress) -> dict[Words, dict[str, Floats]]:
        """What the encoders give for each different prompt, as batches of one."""
        prompts, found = list(dict.fromkeys(request.texts(slice(None)))), dict[Words, dict[str, Floats]]()
        # Where a window is as long as its prompt needs, a longer neighbour would change what becomes of it.
        together = request.batch if all(window.fixed for _, window in self._windows) else 1
        for first in range(0, len(prompts), together):
            some = prompts[first : first + together]
            given = self.encode(some)
            for row, prompt in enumerate(some):
                found[prompt] = {name: values[row : row + 1] for name, values in given.items()}
            progress("encode", len(found), len(prompts))
        return found

    def _groups(self, request: Request) -> Iterator[list[slice]]:
        """Batches that go through a stage together: several if stages take turns, so that few are loaded."""
        batches, together = list(request.batches()), GROUP if self.memory == "sequential" else 1
        for first in range(0, len(batches), together):
            yield batches[first : first + together]

    def _condition(self, text: Values, trajectory: Trajectory, guidance: Floats | None) -> Values:
        """`condition`, into the loop's own buffers if it is next, else onto the host."""
        into = None
        if self.memory != "sequential":
            into = self._loop(LoopShape.of(trajectory, self.flow.text(text))).conditioning
        references = beside.seen(trajectory, self.bundle.manifest.model.positions)
        found = self.condition(text, trajectory.levels, guidance, into, references)
        return {name: self._keep(value) for name, value in found.items()}

    def _walk(self, trajectory: Trajectory, conditions: Values, tell: Callable[[int], None]) -> Buffer:
        """The last latents of `walk`; on a GPU the loop may be a single launch."""
        if self.backend.gpu is None:
            for step in self.walk(trajectory, conditions):
                tell(step.index)
            return step.latents
        loop = self._loop(LoopShape.of(trajectory, self.flow.text(conditions)))
        loop.begin(trajectory, conditions)
        last = loop.run()
        _expect_finite(last, trajectory.steps, trajectory.steps, self._precision)
        tell(trajectory.steps)
        return last

    def _loop(self, of: LoopShape) -> Loop:
        """The loop of a shape; on a GPU it is kept with its buffers and its recording."""
        parts = self.backend, self.bundle.manifest, self.flow, self._graphs
        if self.backend.gpu is None:
            return Loop(*parts, of)
        if of not in self._loops:
            if len(self._loops) >= LOOPS:
                self._loops.popitem(last=False)[1].close()
            self._loops[of] = Loop(*parts, of, self._record)
        self._loops.move_to_end(of)
        return self._loops[of]

    def _keep(self, value: Buffer | Floats) -> Buffer | Floats:
        """A value until it is used: in sequential mode on the host, where it takes no GPU memory."""
        return value.numpy() if self.memory == "sequential" and not isinstance(value, np.ndarray) else value


def _targets(last: Buffer, trajectory: Trajectory) -> list[Buffer]:
    """The target pictures' latents, [batch, tokens, channels]: all in one, or one by one."""
    batch, tokens, channels = len(trajectory.start), *trajectory.start.shape[1:]
    if last.shape[0] != batch:  # both halves of a guided run are the same
        last = last.head(batch)
    if tokens == trajectory.target:
        return [last]
    return [last[row].head(trajectory.target).reshape(1, trajectory.target, channels) for row in range(batch)]


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 4)


def _expect_finite(found: Buffer, index: int, steps: int, precision: Precision) -> None:
    if not np.isfinite(found.numpy()).all():
        way_out = "build the bundle in a wider precision (--precision bf16 or fp32)"
        if precision in ("bf16", "fp32"):
            way_out = "nothing overflows in this precision: check the checkpoint with flux-export verify"
        raise PaintError(f"latents are not finite after step {index} of {steps} in {precision}; {way_out}")
