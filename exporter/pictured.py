"""What is painted to calibrate from pictures: the lines of a file of jobs, as one trajectory of latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flux_trt.exporter.describe import describe
from flux_trt.exporter.families.model import Model
from flux_trt.exporter.quantise.calibrate import Painting, usual
from flux_trt.exporter.quantise.calibration import Settings
from flux_trt.exporter.quantise.pictures import encoder
from flux_trt.runtime import jobs
from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import BuildError, RequestError
from flux_trt.runtime.jobrun import asked_by
from flux_trt.runtime.sampling.trajectory import Trajectory
from flux_trt.runtime.tasks.apart import PICTURES
from flux_trt.runtime.tasks.compose import compose
from flux_trt.runtime.tasks.encoded import encode_pictures
from flux_trt.runtime.tasks.request import Request

TAKEN = (
    *("prompt", "size", "steps", "shift", "sigmas", "guidance", "seed", "strength", "outpaint"),
    *("reference", "auto_resize", *PICTURES),
)
"""Fields of a job that change what enters the layers and that a calibration can follow. `output` is nobody's
business here; the others are refused by name."""


@dataclass(frozen=True)
class Jobs:
    """A file of jobs, and what its lines leave out."""

    path: Path
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None

    def __call__(self, model: Model, device: str) -> Painting:
        """All jobs together: their settings, and the trajectory that they start.

        Raises:
            RequestError: a job that cannot be.
            BuildError: no jobs, or jobs that cannot be painted together.
            CheckpointError: no VAE to encode the pictures.
        """
        found = describe(model, {}, {}, {}, {}, None, {}).model_copy(
            update={"tasks": model.tasks(model.parts)}
        )
        requests = [self._request(job, index, found, model) for index, job in enumerate(jobs.read(self.path))]
        if not requests:
            raise BuildError(f"{self.path} has no jobs; give a JSON object on each line")
        encode = encoder(model, device)
        each = [
            compose(request, encode_pictures(request, encode), slice(0, 1), found) for request in requests
        ]
        self._expect_alike(requests, each)
        first = requests[0]
        settings = Settings(
            prompts=[request.prompts[0] for request in requests],
            width=first.width,
            height=first.height,
            steps=first.steps,
            guidance=first.guidance,
            seed=first.seeds[0],
            task=first.task,
            pictures=_digest(requests),
        )
        return Painting(settings, _joined(each))

    def _request(self, job: jobs.Job | jobs.BadLine, index: int, found: Manifest, model: Model) -> Request:
        if isinstance(job, jobs.BadLine):
            raise RequestError(job.error)
        given = {name for name, value in job.fields if value not in (None, ())} - {"output"}
        if strange := sorted(given - set(TAKEN)):
            raise RequestError(f"line {job.line}: calibration does not follow {strange[0]!r}; leave it out")
        own = usual(model)
        fields: dict[str, Any] = {"seed": index if job.fields.seed is None else job.fields.seed}
        if job.fields.size is None:
            shown = job.fields.image or job.fields.control or job.fields.canny
            fields["size"] = self.size or (None if shown else (own.width, own.height))
        if job.fields.steps is None and job.fields.sigmas is None:
            fields["steps"] = self.steps or own.steps
        if job.fields.guidance is None and self.guidance is not None:
            fields["guidance"] = self.guidance
        try:
            request = asked_by(replace(job, fields=job.fields.model_copy(update=fields)), found)
        except RequestError as fault:
            raise RequestError(f"line {job.line}: {fault}") from None
        return request

    def _expect_alike(self, requests: Sequence[Request], each: Sequence[Trajectory]) -> None:
        """Refuse jobs that cannot go through a block together.

        Raises:
            BuildError: naming the first that differs.
        """
        if each[0].beside is not None and each[0].beside.grids:
            raise BuildError(
                "calibration does not follow reference pictures that a model keeps apart; leave them out"
            )
        first = requests[0], each[0]
        for number, (request, one) in enumerate(zip(requests, each, strict=True), 1):
            what = {
                "task": request.task == first[0].task,
                "size": one.grids == first[1].grids,
                "schedule": np.array_equal(one.levels, first[1].levels),
                "guidance": request.guidance == first[0].guidance,
            }
            if one.known is not None:
                raise BuildError(
                    f"job {number} of {self.path} has a mask, and the model has no input for it; calibration "
                    "does not follow that: leave the mask out"
                )
            if other := [name for name, same in what.items() if not same]:
                raise BuildError(
                    f"job {number} of {self.path} has another {other[0]} than the first (sizes are those of "
                    "references too); calibration paints all jobs together: give all the same"
                )


def _joined(each: Sequence[Trajectory]) -> Trajectory:
    """One trajectory of all."""
    conditions = [one.condition for one in each if one.condition is not None]
    return Trajectory(
        levels=each[0].levels,
        start=np.concatenate([one.start for one in each]),
        grids=each[0].grids,
        condition=np.concatenate(conditions) if conditions else None,
    )


def _digest(requests: Sequence[Request]) -> str:
    """Of all that the start depends on but the prompts: pictures, seeds, and what becomes of them."""
    facts = [
        [
            {name: [one.sha256 for one in given] for name, given in request.sources.items()},
            request.seeds,
            request.strength,
            request.outpaint,
            request.canny,
            request.auto_resize,
            [float(level) for level in request.levels.sigmas(request.grid[0] * request.grid[1])],
        ]
        for request in requests
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
