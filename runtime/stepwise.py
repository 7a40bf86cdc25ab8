"""A pipeline whose pictures are walked step by step, each at steps of its own, in common runs.

For those who decide between two steps what goes on, such as a server. A picture is that of `Pipeline.paint`
with batches of one, bit for bit, whatever it is walked beside.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from flux_trt.runtime.bundle.flow import DENOISER
from flux_trt.runtime.course import Course
from flux_trt.runtime.errors import BackendError, FluxTrtError
from flux_trt.runtime.painting import Painting
from flux_trt.runtime.pipeline import Pipeline
from flux_trt.runtime.progress import Progress, silent
from flux_trt.runtime.sampling.loop import Loop, LoopShape
from flux_trt.runtime.sampling.together import Together, Waiting, shares
from flux_trt.runtime.tasks import wording
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.tasks.wording import Words

ENCODINGS = 256_000_000
"""Bytes: of FLUX.1 some 30 prompts."""


class Stepwise:
    """`prepare` a request, `begin` its pictures, `step` them with others, and `finish` each."""

    def __init__(self, pipeline: Pipeline, record: bool = True, encodings: int = ENCODINGS) -> None:
        """Make no buffers yet.

        Args:
            pipeline: which may go on painting whole requests beside; its owner closes it, after this one.
            record: on a GPU, launch a step of as many rows as before as one CUDA graph.
            encodings: bytes of encoded prompts that the pipeline keeps from request to request.

        Raises:
            BackendError: in sequential mode, which would load the denoiser anew for each step.
        """
        if pipeline.memory == "sequential":
            raise BackendError(
                "steps cannot be shared where stages take turns at being loaded; use --memory resident"
            )
        self.pipeline = pipeline
        pipeline.encodings.most = encodings
        self._together = Together(pipeline.backend, pipeline.bundle.stage, pipeline.graphs, record)

    @property
    def shares(self) -> bool:
        """Whether pictures at different steps share runs: not where the denoiser's modulation has no rows."""
        return shares(self.pipeline.bundle.stage(DENOISER))

    def prepare(self, request: Request, progress: Progress | None = None) -> Painting:
        """Encode the pictures that a request is given. Errors are those of `Pipeline.paint`."""
        loras = self.pipeline.loras.own if request.loras is None else request.loras
        single = replace(request, batch=1, loras=loras)
        found = Painting(self.pipeline, single, progress or silent)
        found.prepare()
        return found

    def begin(self, painting: Painting, index: int) -> Course:
        """Picture `index` of what was prepared, at its first step. Errors are those of `Pipeline.paint`."""
        return painting.begin(index, self._loop)

    def step(self, courses: Sequence[Course]) -> dict[Course, FluxTrtError]:
        """One step of each course, in as few runs of the denoiser as their shapes allow.

        Returns:
            What went wrong, by course: it cannot go on; the others are not touched by it.
        """
        named: dict[Hashable, Course] = {id(each): each for each in courses}
        with self.pipeline.turn:
            for each in courses:
                each.walk.queue()
            faults = self._together.run(
                {name: each.waiting for name, each in named.items()},
                {name: each.place for name, each in named.items()},
            )
            for name, each in named.items():
                if name not in faults:
                    try:
                        each.step = each.walk.step()
                    except FluxTrtError as fault:
                        faults[name] = fault
        return {named[name]: fault for name, fault in faults.items()}

    def spare(self) -> None:
        """Free what is only kept to be faster the next time."""
        with self.pipeline.turn:
            self._together.close()
            self.pipeline.spare()

    def tokens(self, prompt: Words) -> int:
        """How many tokens of a prompt, with its template, the encoder reads that reads most."""
        windows = enumerate(self.pipeline.windows)
        seen = [window.of([wording.part(prompt, index)]) for index, window in windows]
        return max((int(each.mask.sum()) for each in seen), default=0)

    def close(self) -> None:
        """Free the buffers and recordings; closing twice is harmless."""
        with self.pipeline.turn:
            self._together.close()

    def _loop(self, of: LoopShape, waiting: Waiting) -> Loop:
        pipeline = self.pipeline
        with pipeline.turn:
            return Loop(pipeline.backend, pipeline.bundle.manifest, pipeline.flow, waiting, of, record=False)
