"""One run of a command: a bundle on a machine, which paints requests into files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from flux_trt.runtime import signals
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.backends.loaded import needs
from flux_trt.runtime.backends.memory import MemoryMode
from flux_trt.runtime.backends.protocols import Compute, Device
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import VAE_ENCODER, Flow
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.options import ENGINES
from flux_trt.runtime.outputs import Writing, several
from flux_trt.runtime.painted import Painted, parameters
from flux_trt.runtime.pictures import part
from flux_trt.runtime.pictures.vae import Tiling
from flux_trt.runtime.pipeline import Pipeline
from flux_trt.runtime.preview import Preview, refuse_preview
from flux_trt.runtime.progress import Kind, shown
from flux_trt.runtime.sampling.adapted import Shelf, instead_of
from flux_trt.runtime.tasks.dims import dims_of
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.texts import longest


@dataclass(frozen=True)
class Machine:
    """Where a bundle runs: the options of `flux-run` that every command has."""

    device: Device
    backend: str
    memory: MemoryMode
    tile: int | None
    as_json: bool
    no_check: bool
    engines: Path | None = None
    threads: int | None = None
    compute: Compute = "auto"
    progress: Kind = "auto"
    preview: Path | None = None
    preview_every: int | None = None

    @property
    def each_step(self) -> bool:
        """Whether a GPU is to tell each step: where progress is asked for by name."""
        return self.progress in ("bar", "plain", "json")


def paint(
    bundle: Path, output: Path, machine: Machine, ask: Callable[[Bundle], Request], writing: Writing
) -> None:
    """Paint one request and print where the pictures are; those that are done also when it ends early.

    Args:
        bundle: a folder that `flux-export build` has written.
        output: of the picture, or the stem of several.
        machine: where it runs.
        ask: makes the request for a bundle; called before anything is loaded.
        writing: how the pictures are written.

    Raises:
        FluxTrtError: anything that cannot be done.
        Stopped: a signal; the pictures that are done are there.
    """
    writing.expect_writable(output)
    part.sweep(output.parent)
    start = time.perf_counter()
    opened = open_bundle(bundle, machine)
    request = ask(opened)
    places = several(output, len(request))
    tiling, shelf = Tiling.of(opened.manifest.model, machine.tile), Shelf(opened)
    shelf.of(request.loras or ())
    if machine.preview:
        writing.expect_writable(machine.preview)
    refuse_preview(machine.preview, machine.preview_every, machine.memory, places)
    writing.expect_free(places, [parameters(opened, request, index, tiling) for index in range(len(request))])
    report = Report(machine.as_json, len(places))
    try:
        with load(opened, machine, request, shelf) as pipeline:
            report.device, loaded = pipeline.backend.device, time.perf_counter()
            report.seconds["load"] = round(loaded - start, 4)
            on_step = None
            if machine.preview:
                on_step = Preview(machine.preview, machine.preview_every, pipeline.decode)
            with shown(machine.progress) as progress:
                painting = pipeline.paint(request, progress, on_step, machine.each_step)
                for path, painted in zip(places, painting, strict=True):
                    with signals.held():
                        writing.write(painted.image, path)
                        report.add(path, painted)
    except signals.Stopped as cause:
        told = f"{len(report.pictures)} of {len(places)} pictures are painted"
        stopped = signals.Stopped(cause.number, told)
        report.print(start, str(stopped))
        raise stopped from None
    except Exception as fault:
        if report.pictures:
            report.print(start, " ".join(str(fault).split()))
        raise
    report.print(start)


@dataclass
class Report:
    """What a command prints of its pictures."""

    as_json: bool
    asked: int

    def __post_init__(self) -> None:
        self.device: str | None = None
        self.seconds: dict[str, float] = {}
        self.pictures: list[dict[str, Any]] = []

    def add(self, path: Path, painted: Painted) -> None:
        """One that is there."""
        self.pictures.append({"path": str(path), **painted.parameters, "seconds": painted.seconds})

    def print(self, start: float, stopped: str = "") -> None:
        """Their names, or one JSON object; `stopped` says why there are fewer than were asked for."""
        if not self.as_json:
            if self.pictures:
                click.echo("\n".join(str(each["path"]) for each in self.pictures))
            return
        seconds = {**self.seconds, "total": round(time.perf_counter() - start, 4)}
        answer = {"device": self.device, "seconds": seconds, "pictures": self.pictures}
        click.echo(json.dumps(answer | ({"asked": self.asked, "stopped": stopped} if stopped else {})))


def open_bundle(bundle: Path, machine: Machine) -> Bundle:
    """The bundle, and where its engines are."""
    given = machine.engines is not None and str(machine.engines) != os.environ.get(ENGINES)
    if given and not machine.backend.startswith("tensorrt"):
        raise RequestError("--engines is for --backend tensorrt and tensorrt-rtx; leave it out")
    return Bundle.open(bundle, check=not machine.no_check, engines=machine.engines)


def load(
    opened: Bundle, machine: Machine, request: Request | None = None, shelf: Shelf | None = None
) -> Pipeline:
    """The bundle, loaded for a request, whose LoRAs may lie on a shelf; on a GPU it is said what it needs."""
    check = not machine.no_check
    backend = connect(
        machine.backend, machine.device, opened, machine.memory, check, machine.threads, machine.compute
    )
    if backend.gpu:
        dims = None
        if request:
            dims = dims_of(request, opened.manifest, longest(opened, request.texts(slice(None))))
        instead = instead_of(opened, shelf.of(request.loras or ()) if shelf and request else None)
        stages = tuple(instead.get(name, name) for name in Flow.of(opened).stages)
        if request and request.has_pictures:
            stages = (*stages, VAE_ENCODER)
        needed = needs(opened, backend, machine.memory, stages, dims)
        click.echo(needed.line(backend.gpu), err=True)
        needed.expect_fit(backend.gpu)
    loras = (request.loras if request else None) or ()
    return Pipeline(opened, backend, machine.memory, tile=machine.tile, loras=loras, shelf=shelf)


def split(options: dict[str, Any]) -> Machine:
    """Take the machine's options out of a command's."""
    return Machine(**{name: options.pop(name) for name in Machine.__dataclass_fields__})


def split_writing(options: dict[str, Any]) -> Writing:
    """Take what is said of writing out of a command's options."""
    return Writing(**{name: options.pop(name) for name in Writing.__dataclass_fields__})
