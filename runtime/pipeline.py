"""The pipeline: tokenise, encode, condition, denoise, decode."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.loaded import Loaded, needs
from flux_trt.runtime.backends.memory import MemoryMode, way_out
from flux_trt.runtime.backends.protocols import Backend, Buffer, Compute, Device, Graphs
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import DENOISER, VAE_DECODER, VAE_ENCODER, Flow, taken
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.conditioned import Values, asked, conditioned
from flux_trt.runtime.encodings import Encodings
from flux_trt.runtime.lora.chosen import LoraLike
from flux_trt.runtime.loras import Loras
from flux_trt.runtime.painted import Painted
from flux_trt.runtime.painting import OnStep, Painting
from flux_trt.runtime.pictures import latents, vae, written
from flux_trt.runtime.pictures.encoded import EncodedPicture
from flux_trt.runtime.progress import Progress, silent
from flux_trt.runtime.sampling import beside
from flux_trt.runtime.sampling.adapted import Adapted, Shelf
from flux_trt.runtime.sampling.loop import Loop, LoopShape
from flux_trt.runtime.sampling.loops import Loops
from flux_trt.runtime.sampling.trajectory import Trajectory
from flux_trt.runtime.step import Step, walked
from flux_trt.runtime.tasks import wording
from flux_trt.runtime.tasks.apart import Part, apart, in_order
from flux_trt.runtime.tasks.arguments import EditArguments, GenerateArguments, PictureLike
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.tasks.wording import Words
from flux_trt.runtime.texts import Encoded
from flux_trt.runtime.turn import Turn

Floats = npt.NDArray[np.float32]
LOOPS = 4  # shapes whose buffers and recordings are kept on a GPU

_log = logging.getLogger(__name__)


class Pipeline:
    """A bundle that is loaded and ready to paint; a context manager, or `close` it.

    Threads may share one: each batch is painted in one turn, and turns are given in the order in which
    threads ask for them. A call waits for the batch that is under way, and so does `close`, after which the
    others are refused. Callbacks are called in the turn, and may call this pipeline too.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        memory: MemoryMode = "resident",
        record: bool = True,
        tile: int | None = None,
        loras: Sequence[LoraLike] = (),
        shelf: Shelf | None = None,
    ) -> None:
        """Load the stages that text-to-image needs; `load` is the usual way.

        Args:
            bundle: what to paint with.
            backend: what runs its graphs; one that was made for this memory mode.
            memory: what may be loaded at once.
            record: on a GPU, launch the denoising loop as one CUDA graph from its second run on.
            tile: see `load`.
            loras: see `load`.
            shelf: where LoRAs for this bundle may have been read already.

        Raises:
            FluxTrtError: a partial bundle, or a stage that the backend cannot run or that does not fit.
        """
        self.bundle = bundle
        self.backend = backend
        self.memory = memory
        self._record = record
        self.turn = Turn()
        self.kept = beside.Kept(memory)
        self.encodings = Encodings()
        self.tiling = vae.Tiling.of(bundle.manifest.model, tile)
        self.flow = Flow.of(bundle)
        self.loras = Loras(bundle, backend, loras, shelf)
        self._windows = [
            (each.stage, Window(bundle.root, bundle.tokenizer(each.tokenizer)))
            for each in bundle.manifest.encoders
        ]
        instead = self.loras.instead()
        first = [instead.get(name, name) for name in self.flow.stages]
        if backend.gpu:
            backend.gpu.way_out = way_out(memory)
            needs(bundle, backend, memory, first).expect_fit(backend.gpu)
        self.fixed = all(window.fixed for _, window in self._windows)
        self._graphs = Loaded(bundle, backend, memory, first, self.flow.in_turns(bundle))
        self.loops = Loops(self._new_loop, LOOPS if backend.gpu else 0)

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
        threads: int | None = None,
        compute: Compute = "auto",
        loras: Sequence[LoraLike] = (),
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
            threads: that a CPU backend computes on. None: the CPUs that this process may use.
            compute: what a CPU computes the loop in: "fp32" or "bf16", for CPUs with AMX;
                "auto": what the bundle was built in, bf16 only where it is faster.
            loras: those of `set_loras`, from the start.

        Raises:
            RequestError, CheckpointError: as `set_loras`.
            BundleError: a bundle that is not whole.
            BackendError: a backend, device or precision that does not work here, or too little memory;
                threads for a GPU.
        """
        opened = Bundle.open(bundle, check=False, engines=engines)
        connected = connect(backend, device, opened, memory, check, threads, compute)
        if check:
            opened.verify()
        return cls(opened, connected, memory, record, tile, loras)

    def set_loras(self, loras: Sequence[LoraLike]) -> None:
        """Paint with these LoRAs from now on, where a call says nothing else with `lora`; [] is none.

        What is being painted is not changed. Without a LoRA the plain stages run, so that pictures are those
        of before, bit for bit.

        Args:
            loras: files, "FILE:STRENGTH" or (file, strength); several add up.

        Raises:
            RequestError: the bundle takes none, or not these; no such file.
            CheckpointError: a file that is no LoRA for this model.
        """
        self.loras.set(loras)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        progress: Progress | None = None,
        on_step: OnStep | None = None,
        each_step: bool = False,
        **asked: Unpack[GenerateArguments],
    ) -> list[Image.Image]:
        """Paint pictures from text, and from pictures.

        Args:
            prompt: one or several; the empty prompt is allowed.
            progress: told (what, done, total) after each prompt batch encoded, picture encoded, step denoised
                and batch decoded. On a GPU, where all steps are one launch, it is told after the last one.
            on_step: told of each `Step` as it is done; `decode(step.predicted, step.grid)` is a preview. On a
                GPU the steps are then queued one by one, each waited for.
            each_step: on a GPU, tell `progress` after each step, at the same price.
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
        return self._images(apart(ask, "prompt", prompt, dict(asked)), progress, on_step, each_step)

    def edit(
        self,
        image: PictureLike | Sequence[PictureLike],
        *,
        source: str | Sequence[str],
        target: str | Sequence[str],
        progress: Progress | None = None,
        on_step: OnStep | None = None,
        each_step: bool = False,
        **asked: Unpack[EditArguments],
    ) -> list[Image.Image]:
        """Edit pictures with FlowEdit (Kulikov et al. 2024): from what they show to what they should show.

        Args:
            image: a picture, or one per target.
            source: what it shows.
            target: what it should show.
            progress, on_step, each_step: as in `generate`.
            asked: see `EditArguments`.

        Returns:
            The edited pictures. Errors are `generate`'s.
        """
        ask, given = partial(Request.of_edit, self.bundle.manifest), {"image": image, "source": source}
        parts = apart(ask, "target", target, given | dict(asked))
        return self._images(parts, progress, on_step, each_step)

    def paint(
        self,
        request: Request,
        progress: Progress | None = None,
        on_step: OnStep | None = None,
        each_step: bool = False,
    ) -> Iterator[Painted]:
        """Paint a request, batch by batch; prompts are encoded as they come. The rest is as in `generate`."""
        if request.loras is None:
            request = replace(request, loras=self.loras.own)
        return iter(Painting(self, request, progress or silent, on_step, each_step))

    def encode(self, prompts: Sequence[Words]) -> dict[str, Floats]:
        """Tokenise and encode prompts; text that is not read, or not as meant, is logged as a warning.

        Args:
            prompts: one text for all encoders, or one for each in their order.

        Returns:
            What the text encoders give, by name, each [len(prompts), ...].
        """
        return dict(self.encode_apart([prompts])[0])

    def encode_apart(self, groups: Sequence[Sequence[Words]]) -> list[Encoded]:
        """`encode` for groups of prompts, each by itself, one encoder after the other."""
        found: list[dict[str, Floats]] = [{} for _ in groups]
        with self.turn:
            through = [
                {
                    name: window.of([wording.part(prompt, index) for prompt in prompts])
                    for index, (name, window) in enumerate(self._windows)
                }
                for prompts in groups
            ]
            for seen, prompts in zip(through, groups, strict=True):
                for line in (*wording.cut(seen), *wording.literal(prompts)):
                    _log.warning("%s", line)
            for name, _ in self._windows:
                stage = self.bundle.stage(name)
                for seen, values in zip(through, found, strict=True):
                    given = taken(stage, seen[name].inputs)
                    values |= self.encodings.run(self._graphs, name, given)
        return list(found)

    def encode_picture(self, pixels: npt.NDArray[Any], progress: Progress | None = None) -> EncodedPicture:
        """Encode one picture: pixels [H, W, 3] of 0..255, sides multiples of the patch."""
        tell = partial(progress or silent, "encode tiles")
        with self.turn:
            graph, model = self._graphs[VAE_ENCODER], self.bundle.manifest.model
            return vae.encode(graph, pixels, model, self.tiling, tell)

    def condition(
        self,
        text: Values,
        levels: Floats,
        guidance: float | Floats | None,
        into: Mapping[str, Buffer] | None = None,
        references: Mapping[str, Floats] | None = None,
        adapted: Adapted | None = None,
    ) -> Values:
        """All that the denoiser needs of text and time, for every step at once.

        Args:
            text: from `encode`, each [batch, ...].
            levels: [steps + 1], from `schedule.sigmas`.
            guidance: one, or [batch]. None for a model without guidance input.
            into: the buffers to write to, by name. None: new ones.
            references: from `beside.seen`, for a model that takes them so.
            adapted: LoRAs that `loras.lent` has lent. None: those of `set_loras`.

        Returns:
            What the denoiser takes beside the loop's own, by name; what differs from step to step is
            [steps, ...].
        """
        found = asked(self.bundle, self.flow, [text], levels, guidance, references)
        there = None if into is None else [into]
        with self.turn, self.loras.lent(adapted) as lent:
            return conditioned(self.bundle, self.flow, self._graphs, self.kept, found, there, lent)[0]

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

    def walk(
        self, trajectory: Trajectory, conditions: Values, adapted: Adapted | None = None
    ) -> Iterator[Step]:
        """`denoise` for any trajectory, whose rows are those of the conditions.

        Nothing leaves the device between steps: what a step takes of `conditions` is a view, and two buffers
        take turns as latents and next latents. Each step is a turn of its own: other threads, and other
        walks, may come between two of them. One generator is for one thread at a time, as Python has it.
        `adapted` are LoRAs; None: those of `set_loras`, as they are when the first step is asked for.
        """
        with self.loras.lent(adapted) as lent:
            shape = LoopShape.of(trajectory, self.flow.text(conditions), lent)
            with self.loops.lent(shape) as loop:
                with self.turn:
                    loop.begin(trajectory, conditions, lent)
                yield from walked(loop, trajectory, self.turn, self.bundle.stage(DENOISER).precision)

    def decode(
        self, packed: Buffer | Floats, grid: latents.Grid, progress: Progress | None = None
    ) -> list[Image.Image]:
        """Pictures of latents [batch, tokens, channels]."""
        tell = partial(progress or silent, "decode tiles")
        with self.turn:
            graph, model = self._graphs[VAE_DECODER], self.bundle.manifest.model
            pixels = vae.decode(graph, packed, grid, model, self.tiling, tell)
        return [Image.fromarray(each) for each in pixels]

    @property
    def graphs(self) -> Graphs:
        """The stages and glue, by name; run in a turn."""
        return self._graphs

    @property
    def windows(self) -> Sequence[Window]:
        """What the text encoders see of prompts, in their order."""
        return [window for _, window in self._windows]

    save = staticmethod(written.write)
    """Write a picture as PNG, JPEG or WebP, by the name, with all that it was painted with."""

    def spare(self) -> None:
        """Free what is only kept to be faster the next time: loops, recordings, reference pictures, LoRAs."""
        with self.turn:
            self.encodings.forget()
            self.kept.forget()
            self.loops.forget()
            self.loras.close()

    def close(self) -> None:
        """Free all graphs and recordings, once the turns of other threads are over; twice is harmless."""
        with self.turn:
            self.kept.forget()
            self.loops.close()
            self.loras.close()
            self._graphs.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def _images(
        self, parts: list[Part], progress: Progress | None, on_step: OnStep | None, each_step: bool
    ) -> list[Image.Image]:
        """The pictures of all parts of a call, in its order."""
        painted = (
            [each.image for each in self.paint(part, progress, on_step, each_step)] for part, _ in parts
        )
        return list(in_order(zip(painted, (places for _, places in parts), strict=True)))

    def _new_loop(self, of: LoopShape) -> Loop:
        record = self._record and self.backend.gpu is not None
        with self.turn:
            return Loop(self.backend, self.bundle.manifest, self.flow, self._graphs, of, record)
