"""The pipeline: tokenise, encode, condition, denoise, decode."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.plugins.rope import rope_tables
from flux_trt.runtime import latents, noise, picture, schedule
from flux_trt.runtime.backend import Backend, Buffer, Device, Graph, connect
from flux_trt.runtime.bundle import Bundle
from flux_trt.runtime.errors import PaintError
from flux_trt.runtime.manifest import StageName
from flux_trt.runtime.progress import Progress, silent
from flux_trt.runtime.request import Request
from flux_trt.runtime.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
STAGES: tuple[StageName, ...] = ("clip", "t5", "conditioner", "denoiser", "vae_decoder")
ENCODERS: tuple[StageName, ...] = ("clip", "t5")

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

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Load every stage that text-to-image needs; `load` is the usual way.

        Raises:
            FluxTrtError: a partial bundle, or a stage that the backend cannot run.
        """
        self.bundle = bundle
        self.backend = backend
        stages = {name: bundle.stage(name) for name in STAGES}
        self._tokenizers = {name: Tokenizer(bundle.root, bundle.tokenizer(name)) for name in ENCODERS}
        for name, stage in stages.items():
            backend.refuse(name, stage)
        self._graphs: dict[str, Graph] = {}
        try:
            for name, stage in stages.items():
                self._graphs[name] = backend.load(bundle.root / stage.graph, name, stage)
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(
        cls, bundle: str | Path, backend: str = "onnxruntime", device: Device = "auto", check: bool = True
    ) -> Pipeline:
        """Open a bundle directory and load its stages.

        Args:
            bundle: what `flux-export build --out` has written.
            backend: see `backend.connect`.
            device: "cpu", "cuda", or "auto": the GPU where there is one.
            check: verify the SHA-256 of every file.

        Raises:
            BundleError: a bundle that is not whole.
            BackendError: a backend, device or precision that does not work here.
        """
        connected = connect(backend, device)
        return cls(Bundle.open(bundle, check), connected)

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
        for chosen in request.batches():
            seconds = dict(encoding)
            picked = [row_of[prompt] for prompt in request.prompts[chosen]]
            start = noise.draw(request.seeds[chosen], request.grid, manifest.model.channels)
            with _timed(seconds, "condition"):
                modulation, context = self.condition(pooled[picked], text[picked], levels, request.guidance)
            with _timed(seconds, "denoise"):
                for step in self.denoise(start, levels, modulation, context, request.grid):
                    done = chosen.start * request.steps + step.index * len(picked)
                    progress("denoise", done, pictures * request.steps)
            with _timed(seconds, "decode"):
                images = self.decode(step.latents, request.grid)
            progress("decode", chosen.stop, pictures)
            for index, image in zip(range(pictures)[chosen], images, strict=True):
                parameters = self._parameters(request, index)
                image.info[picture.PARAMETERS] = json.dumps(parameters)
                yield Painted(image, parameters, seconds)

    def encode(self, prompts: Sequence[str]) -> tuple[Floats, Floats]:
        """Tokenise and encode prompts; text that an encoder cannot read is logged as a warning.

        Returns:
            pooled float32 [len(prompts), V] (CLIP) and text float32 [len(prompts), T, C] (T5).
        """
        pooled = self._graphs["clip"].run({"ids": self._tokenise("clip", prompts)})["pooled"]
        text = self._graphs["t5"].run({"ids": self._tokenise("t5", prompts)})["text"]
        return pooled.numpy(), text.numpy()

    def condition(
        self, pooled: Floats, text: Floats, levels: Floats, guidance: float | None
    ) -> tuple[Buffer, Buffer]:
        """All that the denoiser needs of text and time, for every step at once.

        Args:
            pooled: [batch, V], from `encode`.
            text: [batch, T, C], from `encode`.
            levels: [steps + 1], from `schedule.sigmas`.
            guidance: None for a model without guidance input.

        Returns:
            modulation float32 [steps, batch, M, D] and context float32 [batch, T, D].
        """
        inputs = {"timesteps": schedule.timesteps(levels), "pooled": pooled, "text": text}
        if guidance is not None:
            inputs["guidance"] = np.full(len(pooled), guidance, np.float32)
        found = self._graphs["conditioner"].run(inputs)
        return found["modulation"], found["context"]

    def denoise(
        self, start: Floats, levels: Floats, modulation: Buffer, context: Buffer, grid: latents.Grid
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
        model, upload = self.bundle.manifest.model, self.backend.upload
        batch, tokens, _ = start.shape
        cos, sin = rope_tables(latents.positions(context.shape[1], [grid]), model.rope_axes, model.rope_theta)
        strides = np.diff(levels)[:, None, None, None]
        dt = upload(np.broadcast_to(strides, (len(strides), batch, tokens, 1)))
        fixed = {"context": context, "cos": upload(cos), "sin": upload(sin)}
        now, following = upload(start.copy()), upload(np.empty_like(start))
        for index in range(len(strides)):
            inputs = {**fixed, "latents": now, "dt": dt[index], "modulation": modulation[index]}
            self._graphs["denoiser"].run(inputs, into={"next_latents": following})
            now, following = following, now
            if now.on_host or index + 1 == len(strides):
                _expect_finite(now, index + 1, len(strides))
            yield Step(index + 1, float(levels[index + 1]), now)

    def decode(self, packed: Buffer, grid: latents.Grid) -> list[Image.Image]:
        """Pictures of latents [batch, tokens, channels]."""
        batch, _, channels = packed.shape
        found = self._graphs["vae_decoder"].run({"latents": packed.reshape(batch, *grid, channels)})
        return [Image.fromarray(pixels) for pixels in found["image"].numpy()]

    def close(self) -> None:
        """Free all graphs; closing twice is harmless."""
        for graph in self._graphs.values():
            graph.close()

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
