"""One run of a command: a bundle on a machine, which paints requests into files."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from flux_trt.runtime import jobs
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.loaded import needs
from flux_trt.runtime.backends.memory import MemoryMode
from flux_trt.runtime.backends.protocols import Device
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import VAE_ENCODER, Flow
from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import FluxTrtError, PaintError, RequestError
from flux_trt.runtime.jobs import BadLine, Job
from flux_trt.runtime.pictures import picture
from flux_trt.runtime.pipeline import Pipeline
from flux_trt.runtime.preview import Preview, refuse_preview
from flux_trt.runtime.progress import Kind, shown
from flux_trt.runtime.tasks.arguments import EditArguments, GenerateArguments
from flux_trt.runtime.tasks.dims import dims_of
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.tasks.shortcuts import expanded

OUTCOMES = ("painted", "kept", "failed")


@dataclass(frozen=True)
class Machine:
    """Where a bundle runs: the options of `flux-run` that every command has."""

    device: Device
    backend: str
    memory: MemoryMode
    tile: int | None
    as_json: bool
    no_check: bool
    threads: int | None = None
    progress: Kind = "auto"
    preview: Path | None = None
    preview_every: int | None = None

    @property
    def each_step(self) -> bool:
        """Whether a GPU is to tell each step: where progress is asked for by name."""
        return self.progress in ("bar", "plain", "json")


def paint(bundle: Path, output: Path, machine: Machine, ask: Callable[[Manifest], Request]) -> None:
    """Paint one request and print where the pictures are.

    Args:
        bundle: a folder that `flux-export build` has written.
        output: of the picture, or the stem of several.
        machine: where it runs.
        ask: makes the request for a bundle's manifest; called before anything is loaded.

    Raises:
        FluxTrtError: anything that cannot be done.
    """
    expect_writable(output)
    start = time.perf_counter()
    opened = Bundle.open(bundle, check=not machine.no_check)
    request = ask(opened.manifest)
    places = several(output, len(request))
    if machine.preview:
        expect_writable(machine.preview)
    refuse_preview(machine.preview, machine.preview_every, machine.memory, places)
    with load(opened, machine, request) as pipeline:
        loaded = time.perf_counter()
        written = []
        on_step = None
        if machine.preview:
            on_step = Preview(machine.preview, machine.preview_every, pipeline.decode)
        with shown(machine.progress) as progress:
            painting = pipeline.paint(request, progress, on_step, machine.each_step)
            for path, painted in zip(places, painting, strict=True):
                picture.write(painted.image, path)
                written.append({"path": str(path), **painted.parameters, "seconds": painted.seconds})
    if machine.as_json:
        seconds = {"load": round(loaded - start, 4), "total": round(time.perf_counter() - start, 4)}
        answer = {"device": pipeline.backend.device, "seconds": seconds, "pictures": written}
        click.echo(json.dumps(answer))
    else:
        click.echo("\n".join(str(each["path"]) for each in written))


def paint_jobs(bundle: Path, path: Path, machine: Machine) -> None:
    """Paint the jobs of a file, one by one, with results beside it; what is done already is kept.

    Args:
        bundle: a folder that `flux-export build` has written.
        path: of the jobs, see `jobs`; the results are in PATH's stem with `.results.jsonl`.
        machine: where it runs.

    Raises:
        FluxTrtError: nothing could be painted, or some jobs failed: the others are done.
    """
    opened = Bundle.open(bundle, check=not machine.no_check)
    place = path.with_name(f"{path.stem}.results.jsonl")
    count = Counter[str]()
    found = list(jobs.read(path))
    with (
        load(opened, machine) as pipeline,
        jobs.Results(place) as results,
        shown(machine.progress) as progress,
    ):
        for number, job in enumerate(found, 1):
            count[_paint_job(pipeline, job, path, results)] += 1
            progress("jobs", number, len(found))
    if machine.as_json:
        click.echo(json.dumps({"results": str(place), **{each: count[each] for each in OUTCOMES}}))
    else:
        click.echo(f"{', '.join(f'{count[each]} {each}' for each in OUTCOMES)}; results in {place}")
    if count["failed"]:
        raise PaintError(f"{count['failed']} of {len(found)} jobs failed; {place} says why")


def _paint_job(pipeline: Pipeline, job: Job | BadLine, path: Path, results: jobs.Results) -> str:
    """One of `OUTCOMES`."""
    if isinstance(job, BadLine):
        results.failed(job, job.error)
        return "failed"
    if results.done(job):
        return "kept"
    output = job.fields.output or path.with_name(f"{path.stem}-{job.line}.png")
    try:
        expect_writable(output)
        (painted,) = pipeline.paint(asked_by(job, pipeline.bundle.manifest))
        picture.write(painted.image, output)
    except FluxTrtError as fault:
        results.failed(job, str(fault))
        return "failed"
    results.succeeded(job, output, painted.parameters)
    return "painted"


def asked_by(job: Job, manifest: Manifest) -> Request:
    """The request of a job: an edit where there is a source, a picture of a prompt else.

    Raises:
        RequestError: fields that do not go together, or that the bundle cannot do.
    """
    asked = {name: value for name, value in job.fields if value not in (None, ()) and name != "output"}
    kind = "source" if "source" in asked or "target" in asked else "prompt"
    needed = ("image", "source", "target") if kind == "source" else ("prompt",)
    if missing := [name for name in needed if name not in asked]:
        raise RequestError(
            f"the field {missing[0]!r} is missing; a job has a prompt, or image, source, target"
        )
    foreign = set(asked) - set(
        EditArguments.__annotations__ if kind == "source" else GenerateArguments.__annotations__
    )
    foreign -= {*needed, *(("canny", "outpaint") if kind == "prompt" else ())}
    if foreign:
        raise RequestError(f"a job with {kind!r} has no field {min(foreign)!r}; leave it out")
    if kind == "source":
        return Request.of_edit(manifest, **asked)
    return Request.of(manifest, asked.pop("prompt"), **expanded(manifest, asked))


def load(opened: Bundle, machine: Machine, request: Request | None = None) -> Pipeline:
    """The bundle, loaded; on a GPU it is first said what the request will need."""
    check = not machine.no_check
    backend = connect(machine.backend, machine.device, opened, machine.memory, check, machine.threads)
    if backend.gpu:
        dims = dims_of(request, opened.manifest) if request else None
        stages = Flow.of(opened).stages
        if request and request.has_pictures:
            stages = (*stages, VAE_ENCODER)
        needed = needs(opened, backend, machine.memory, stages, dims)
        click.echo(needed.line(backend.gpu), err=True)
        needed.expect_fit(backend.gpu)
    return Pipeline(opened, backend, machine.memory, tile=machine.tile)


def expect_writable(output: Path) -> None:
    """Refuse a place where no PNG can be written, before any work."""
    if output.suffix.lower() != ".png":
        raise RequestError(f"{output} is not a .png name; pictures are written as PNG")
    if output.is_dir():
        raise RequestError(f"{output} is a folder; give a file name in it")
    if not output.parent.is_dir():
        raise RequestError(f"the folder {output.parent} does not exist; create it first")
    if not os.access(output.parent, os.W_OK):
        raise RequestError(f"the folder {output.parent} cannot be written; choose another")


def several(output: Path, pictures: int) -> list[Path]:
    """OUT.png for one picture, OUT-0.png, OUT-1.png ... for several."""
    if pictures == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(pictures)]


def split(options: dict[str, Any]) -> Machine:
    """Take the machine's options out of a command's."""
    return Machine(**{name: options.pop(name) for name in Machine.__dataclass_fields__})
