"""The pipeline: tokenise, encode, condition, denoise, decode."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime import latents, noise, picture, schedule
from flux_trt.runtime.backend import Backend, Buffer, Device, connect
from flux_trt.runtime.bundle import Bundle
from flux_trt.runtime.errors import PaintError
from flux_trt.runtime.loaded import Loaded, needs
from flux_trt.runtime.loop import Loop, LoopShape
from flux_trt.runtime.manifest import StageName
from flux_trt.runtime.memory import MemoryMode, way_out
from flux_trt.runtime.progress import Progress, silent
from flux_trt.runtime.request import Request
from flux_trt.runtime.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
STAGES: tuple[StageName, ...] = ("clip", "t5", "conditioner", "denoiser", "vae_decoder")
ENCODERS: tuple[StageName, ...] = ("clip", "t5")
GROUP = 8  # batches whose modulation waits on the host at once in sequential mode; 0.1 GB each for FLUX.1
LOOPS = 4  # shapes whose buffers and recordings are kept on a GPU

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What a step of the denoising loop leaves."""

    index: int
    """1 for the first step."""
    sigma: float
    """Noise level of the latents now."""
    latents: Buffer
    """float32 [batch, tokens, channels]; overwritten by the step after the next."""


@dataclass(frozen=True)
class Painted:
    """A picture, how it was made, and the seconds its batch took per stage."""

    image: Image.Image
    """Its `info["parameters"]` holds `parameters` as JSON; `picture.write` puts that into the PNG."""
    parameters: dict[str, Any]
    seconds: dict[str, float]


class Pipeline:
    """A bundle that is loaded and ready to paint; a context manager, or `close` it."""

    def __init__(
        self, bundle: Bundle, backend: Backend, memory: MemoryMode = "resident", record: bool = True
    ) -> None:
        """Load the stages that text-to-image needs; `load` is the usual way.

        Args:
            bundle: what to paint with.
            backend: what runs its graphs; one that was made for this memory mode.
            memory: what may be loaded at once.
            record: on a GPU, launch the denoising loop as one CUDA graph from its second run on.

        Raises:
            FluxTrtError: a partial bundle, or a stage that the backend cannot run or that does not fit.
        """
        self.bundle = bundle
        self.backend = backend
        self.memory = memory
        self._record = record
        self._loops: OrderedDict[LoopShape, Loop] = OrderedDict()
        for name in STAGES:
            bundle.stage(name)
        self._tokenizers = {name: Tokenizer(bundle.root, bundle.tokenizer(name)) for name in ENCODERS}
        if backend.gpu:
            backend.gpu.way_out = way_out(memory)
            needs(bundle, backend, memory, STAGES).expect_fit(backend.gpu)
        self._graphs = Loaded(bundle, backend, memory, STAGES)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        backend: str = "onnxruntime",
        device: Device = "auto",
        check: bool = True,
        memory: MemoryMode = "resident",
        record: bool = True,
    ) -> Pipeline:
        """Open a bundle directory and load its stages.

        Args:
            bundle: what `flux-export build --out` has written.
            backend: see `backend.connect`.
            device: "cpu", "cuda", or "auto": the GPU where there is one.
            check: verify the SHA-256 of every file.
            memory: "resident", "sequential" or "streaming"; see `memory`.
            record: on a GPU, launch the denoising loop as one CUDA graph from its second run on.

        Raises:
            BundleError: a bundle that is not whole.
            BackendError: a backend, device or precision that does not work here, or too little memory.
        """
        opened = Bundle.open(bundle, check=False)
        connected = connect(backend, device, opened, memory, check)
        if check:
            opened.verify()
        return cls(opened, connected, memory, record)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] | None = 0,
        count: int = 1,
        batch: int | None = None,
        progress: Progress = silent,
    ) -> list[Image.Image]:
        """Paint pictures from text.

        Args:
            prompt: one or several; the empty prompt is allowed.
            size: (width, height) in pixels. None: the bundle's default, as for steps and guidance.
            steps: how often the denoiser runs.
            guidance: how closely to follow the prompt; only for models that are distilled with it (dev).
            seed: picture k, counted over all prompts, has its own seed, `seed + k`, so each can be
                painted again alone. A sequence gives one per picture. None draws one at random.
            count: pictures per prompt.
            batch: how many pictures are painted at once, at most; 1 needs the least memory.
            progress: told (stage, done, total) after each prompt batch encoded, step denoised and batch
                decoded.

        Returns:
            The pictures, prompt by prompt; `image.info["parameters"]` has what was used, as JSON.

        Raises:
            RequestError: something that the bundle cannot do.
            PaintError: latents that are not finite.
            BackendError: a stage that failed, for example without enough memory.
        """
        request = Request.of(
            self.bundle.manifest,
            prompt,
            size=size,
            steps=steps,
            guidance=guidance,
            seed=seed,
            count=count,
            batch=batch,
        )
        return [painted.image for painted in self.paint(request, progress)]

    def paint(self, request: Request, progress: Progress = silent) -> Iterator[Painted]:
        """Paint a request, batch by batch; every prompt is encoded once. Errors are `generate`'s."""
        manifest, pictures = self.bundle.manifest, len(request.prompts)
        rows, columns = request.grid
        levels = schedule.sigmas(manifest.scheduler, request.steps, rows * columns)
        encoding: dict[str, float] = {}
        with _timed(encoding, "encode"):
            row_of, pooled, text = self._encode_once(request, progress)
        for group in self._groups(request):
            seconds = {chosen.start: dict(encoding) for chosen in group}
            conditioned: dict[int, tuple[Buffer | Floats, Buffer | Floats]] = {}
            for chosen in group:
                picked = [row_of[prompt] for prompt in request.prompts[chosen]]
                with _timed(seconds[chosen.start], "condition"):
                    conditioned[chosen.start] = self._condition(pooled[picked], text[picked], levels, request)
            packed: dict[int, Buffer | Floats] = {}
            for chosen in group:
                start = noise.draw(request.seeds[chosen], request.grid, manifest.model.channels)
                done = chosen.start * request.steps

                def tell(steps: int, done: int = done, batch: int = len(start)) -> None:
                    progress("denoise", done + steps * batch, pictures * request.steps)

                with _timed(seconds[chosen.start], "denoise"):
                    parts = conditioned.pop(chosen.start)
                    packed[chosen.start] = self._keep(self._walk(start, levels, *parts, request.grid, tell))
            for chosen in group:
                with _timed(seconds[chosen.start], "decode"):
                    images = self.decode(packed.pop(chosen.start), request.grid)
                progress("decode", chosen.stop, pictures)
                for index, image in zip(range(pictures)[chosen], images, strict=True):
                    parameters = self._parameters(request, index)
                    image.info[picture.PARAMETERS] = json.dumps(parameters)
                    yield Painted(image, parameters, seconds[chosen.start])

    def encode(self, prompts: Sequence[str]) -> tuple[Floats, Floats]:
        """Tokenise and encode prompts; text that an encoder cannot read is logged as a warning.

        Returns:
            pooled float32 [len(prompts), V] (CLIP) and text float32 [len(prompts), T, C] (T5).
        """
        pooled = self._graphs["clip"].run({"ids": self._tokenise("clip", prompts)})["pooled"]
        text = self._graphs["t5"].run({"ids": self._tokenise("t5", prompts)})["text"]
        return pooled.numpy(), text.numpy()

    def condition(
        self,
        pooled: Floats,
        text: Floats,
        levels: Floats,
        guidance: float | None,
        into: Mapping[str, Buffer] | None = None,
    ) -> tuple[Buffer, Buffer]:
        """All that the denoiser needs of text and time, for every step at once.

        Args:
            pooled: [batch, V], from `encode`.
            text: [batch, T, C], from `encode`.
            levels: [steps + 1], from `schedule.sigmas`.
            guidance: None for a model without guidance input.
            into: the buffers `modulation` and `context` to write to. None: new ones.

        Returns:
            modulation float32 [steps, batch, M, D] and context float32 [batch, T, D].
        """
        inputs = {"timesteps": schedule.timesteps(levels), "pooled": pooled, "text": text}
        if guidance is not None:
            inputs["guidance"] = np.full(len(pooled), guidance, np.float32)
        found = self._graphs["conditioner"].run(inputs, into)
        return found["modulation"], found["context"]

    def denoise(
        self,
        start: Floats,
        levels: Floats,
        modulation: Buffer | Floats,
        context: Buffer | Floats,
        grid: latents.Grid,
    ) -> Iterator[Step]:
        """Walk the latents from noise to picture, one yield per step; stop whenever you like.

        Nothing leaves the device between steps: the step's modulation is a view, and two buffers take
        turns as latents and next latents.

        Args:
            start: float32 [batch, tokens, channels] at noise level `levels[0]`.
            levels: [steps + 1], from `schedule.sigmas`.
            modulation: [steps, batch, M, D], from `condition`.
            context: [batch, T, D], from `condition`.
            grid: of the picture.

        Raises:
            PaintError: latents that are not finite. On a GPU they are looked at after the last step only.
        """
        steps, loop = (
            len(levels) - 1,
            self._loop(LoopShape(len(levels) - 1, len(start), context.shape[1], grid)),
        )
        loop.begin(start, levels, modulation, context)
        for index, now in enumerate(loop.steps(self._graphs["denoiser"]), 1):
            if now.on_host or index == steps:
                _expect_finite(now, index, steps)
            yield Step(index, float(levels[index]), now)

    def decode(self, packed: Buffer | Floats, grid: latents.Grid) -> list[Image.Image]:
        """Pictures of latents [batch, tokens, channels]."""
        batch, _, channels = packed.shape
        found = self._graphs["vae_decoder"].run({"latents": packed.reshape(batch, *grid, channels)})
        return [Image.fromarray(pixels) for pixels in found["image"].numpy()]

    def close(self) -> None:
        """Free all graphs and recordings; closing twice is harmless."""
        while self._loops:
            self._loops.popitem()[1].close()
        self._graphs.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tokenise(self, encoder: StageName, prompts: Sequence[str]) -> npt.NDArray[np.int64]:
        ids, lost = self._tokenizers[encoder].encode(prompts)
        for text in filter(None, lost):
            _log.warning("%s reads only %d tokens; not read: %r", encoder, ids.shape[1], text)
        return ids

    def _encode_once(self, request: Request, progress: Progress) -> tuple[dict[str, int], Floats, Floats]:
        """The row of each different prompt, and all rows of pooled and text."""
        prompts = list(dict.fromkeys(request.prompts))
        parts = []
        for first in range(0, len(prompts), request.batch):
            parts.append(self.encode(prompts[first : first + request.batch]))
            progress("encode", min(first + request.batch, len(prompts)), len(prompts))
        pooled, text = (np.concatenate(each) for each in zip(*parts, strict=True))
        return {prompt: row for row, prompt in enumerate(prompts)}, pooled, text

    def _groups(self, request: Request) -> Iterator[list[slice]]:
        """Batches that go through a stage together: several if stages take turns, so that few are loaded."""
        batches, together = list(request.batches()), GROUP if self.memory == "sequential" else 1
        for first in range(0, len(batches), together):
            yield batches[first : first + together]

    def _condition(
        self, pooled: Floats, text: Floats, levels: Floats, request: Request
    ) -> tuple[Buffer | Floats, Buffer | Floats]:
        """`condition`, into the loop's own buffers if it is next, else onto the host."""
        into = None
        if self.memory != "sequential":
            loop = self._loop(LoopShape(request.steps, len(pooled), text.shape[1], request.grid))
            into = loop.conditioning
        modulation, context = self.condition(pooled, text, levels, request.guidance, into)
        return self._keep(modulation), self._keep(context)

    def _walk(
        self,
        start: Floats,
        levels: Floats,
        modulation: Buffer | Floats,
        context: Buffer | Floats,
        grid: latents.Grid,
        tell: Callable[[int], None],
    ) -> Buffer:
        """The last latents of `denoise`; on a GPU the loop may be a single launch."""
        if self.backend.gpu is None:
            for step in self.denoise(start, levels, modulation, context, grid):
                tell(step.index)
            return step.latents
        loop = self._loop(LoopShape(len(levels) - 1, len(start), context.shape[1], grid))
        loop.begin(start, levels, modulation, context)
        last = loop.run(self._graphs["denoiser"])
        _expect_finite(last, loop.shape.steps, loop.shape.steps)
        tell(loop.shape.steps)
        return last

    def _loop(self, of: LoopShape) -> Loop:
        """The loop of a shape; on a GPU it is kept with its buffers and its recording."""
        if self.backend.gpu is None:
            return Loop(self.backend, self.bundle.manifest, of)
        if of not in self._loops:
            if len(self._loops) >= LOOPS:
                self._loops.popitem(last=False)[1].close()
            self._loops[of] = Loop(self.backend, self.bundle.manifest, of, self._record)
        self._loops.move_to_end(of)
        return self._loops[of]

    def _keep(self, buffer: Buffer) -> Buffer | Floats:
        """A buffer until it is used: in sequential mode on the host, where it takes no GPU memory."""
        return buffer.numpy() if self.memory == "sequential" else buffer

    def _parameters(self, request: Request, index: int) -> dict[str, Any]:
        return {
            "prompt": request.prompts[index],
            "seed": request.seeds[index],
            "steps": request.steps,
            "guidance": request.guidance,
            "width": request.width,
            "height": request.height,
            "variant": self.bundle.manifest.variant,
            "bundle": self.bundle.digest,
            "flux_trt": importlib.metadata.version("flux_trt"),
        }


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 4)


def _expect_finite(found: Buffer, index: int, steps: int) -> None:
    if not np.isfinite(found.numpy()).all():
        raise PaintError(
            f"latents are not finite after step {index} of {steps}; "
            f"build the bundle in a wider precision (--precision bf16 or fp32)"
        )
