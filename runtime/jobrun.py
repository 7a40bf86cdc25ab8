"""A run of a file of jobs: what is done is kept, and what is alike is painted together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import click

from flux_trt.runtime import jobs, session, signals
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import FluxTrtError, PaintError, RequestError
from flux_trt.runtime.jobs import BadLine, Job
from flux_trt.runtime.outputs import Writing, differs
from flux_trt.runtime.painted import parameters
from flux_trt.runtime.pictures import part
from flux_trt.runtime.pictures.vae import Tiling
from flux_trt.runtime.pipeline import Pipeline
from flux_trt.runtime.progress import Progress, shown
from flux_trt.runtime.results import Results
from flux_trt.runtime.session import Machine
from flux_trt.runtime.tasks.arguments import EditArguments, GenerateArguments
from flux_trt.runtime.tasks.company import gathered, joined
from flux_trt.runtime.tasks.request import Request

OUTCOMES = ("painted", "kept", "failed")
Groups: TypeAlias = Iterable[list[tuple[Job, Request]]]
"""Jobs that are painted together, with what each asks for."""


def here(run: Run, groups: Groups) -> None:
    """Paint groups in this process, one after the other."""
    for group in groups:
        run.paint([job for job, _ in group], [request for _, request in group])


def paint_jobs(
    bundle: Path,
    path: Path,
    machine: Machine,
    writing: Writing,
    batch: int = 1,
    way: Callable[[Run, Groups], None] = here,
) -> None:
    """Paint the jobs of a file, with results beside it; what is done already is kept.

    A job is done when the picture at its place says itself that it was painted with the same bundle, the same
    given pictures and the same parameters.

    Args:
        bundle: a folder that `flux-export build` has written.
        path: of the jobs, see `jobs`; the results are in PATH's stem with `.results.jsonl`.
        machine: where it runs.
        writing: how pictures are written.
        batch: how many jobs of one size, schedule and task are painted at once, at most.
        way: who paints the groups; `spread.over` does it on a cluster.

    Raises:
        FluxTrtError: nothing could be painted, or some jobs failed: the others are done.
        Stopped: a signal; what is painted is noted in the results.
    """
    opened = session.open_bundle(bundle, machine)
    place = path.with_name(f"{path.stem}.results.jsonl")
    found = list(jobs.read(path))
    jobs.expect_apart(found)
    with Results(place) as results, shown(machine.progress) as progress:
        run = Run(opened, machine, writing, results, len(found), progress)
        try:
            run.expect_free(found)
            way(run, gathered(run.wanted(found), batch))
        except signals.Stopped as cause:
            stopped = signals.Stopped(cause.number, f"{run.told()}; the same command goes on from there")
            run.print(machine.as_json, place, str(stopped))
            raise stopped from None
        finally:
            run.close()
    run.print(machine.as_json, place)
    if run.count["failed"]:
        raise PaintError(f"{run.count['failed']} of {len(found)} jobs failed; {place} says why")


class Noting(Protocol):
    """Who keeps the results: `Results`, or an actor, which hands them back."""

    def place(self, job: Job) -> Path | None:
        """Where an earlier run has put a job's picture."""

    def owner(self, place: Path) -> str | None:
        """The key of the job whose picture was the last to be put at a place."""

    def succeeded(self, job: Job, output: Path, parameters: Mapping[str, Any]) -> None:
        """Note a picture that has been written."""

    def failed(self, job: Job | BadLine, error: str) -> None:
        """Note what went wrong."""


@dataclass
class Run:
    """What is known of a run while it lasts."""

    bundle: Bundle
    machine: Machine
    writing: Writing
    results: Noting
    total: int
    progress: Progress
    count: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._tiling = Tiling.of(self.bundle.manifest.model, self.machine.tile)
        self._pipeline: Pipeline | None = None
        self._swept: set[Path] = set()

    def expect_free(self, found: Sequence[Job | BadLine]) -> None:
        """Refuse to replace files that are no results of the same jobs, before any work.

        Raises:
            RequestError: naming the line.
        """
        for job in found:
            if isinstance(job, BadLine) or self.writing.force or not job.place.exists():
                continue
            if self.results.owner(job.place) == job.key:
                continue
            try:
                asked = self._asked(asked_by(job, self.bundle.manifest))
            except FluxTrtError:
                continue  # it will fail, and replace nothing
            if why := differs(job.place, asked):
                raise RequestError(
                    f"line {job.line}: {job.place} is there and is another file ({why}); "
                    "give the job another output, or --force to replace it"
                )

    def wanted(self, found: Sequence[Job | BadLine]) -> Iterator[tuple[Job, Request]]:
        """The jobs that are to be painted, and their requests; the others are counted."""
        for job in found:
            if isinstance(job, BadLine):
                self.fail(job, job.error)
                continue
            try:
                self.writing.expect_writable(job.place)
                self._sweep(job.place.parent)
                request = asked_by(job, self.bundle.manifest)
            except FluxTrtError as fault:
                self.fail(job, str(fault))
                continue
            if self._keeps(job, request):
                self._count("kept")
            else:
                yield job, request

    def paint(self, group: Sequence[Job], requests: Sequence[Request]) -> None:
        """Paint jobs together; where that fails, one by one, so that each has its own result."""
        if self._pipeline is None:
            self._pipeline = session.load(self.bundle, self.machine)
        painted = 0
        try:
            for job, each in zip(group, self._pipeline.paint(joined(requests)), strict=True):
                with signals.held():
                    self.writing.write(each.image, job.place)
                    self.note(job, each.parameters)
                painted += 1
        except FluxTrtError as fault:
            if len(group) == 1:
                self.fail(group[0], str(fault))
                return
            for job, request in list(zip(group, requests, strict=True))[painted:]:
                self.paint([job], [request])

    def note(self, job: Job, parameters: Mapping[str, Any]) -> None:
        """A picture that is there."""
        with signals.held():
            self.results.succeeded(job, job.place, parameters)
            self._count("painted")

    def fail(self, job: Job | BadLine, error: str) -> None:
        """A job that has none."""
        with signals.held():
            self.results.failed(job, error)
            self._count("failed")

    def close(self) -> None:
        """Free the pipeline."""
        if self._pipeline:
            self._pipeline.close()

    def told(self) -> str:
        """How many jobs came to which end."""
        return ", ".join(f"{self.count[each]} {each}" for each in OUTCOMES)

    def print(self, as_json: bool, place: Path, stopped: str = "") -> None:
        """Say that, and where the results are."""
        if as_json:
            counts = {each: self.count[each] for each in OUTCOMES}
            click.echo(
                json.dumps({"results": str(place), **counts} | ({"stopped": stopped} if stopped else {}))
            )
        else:
            click.echo(f"{self.told()}; results in {place}")

    def _sweep(self, folder: Path) -> None:
        if folder not in self._swept:
            part.sweep(folder)
            self._swept.add(folder)

    def _keeps(self, job: Job, request: Request) -> bool:
        """Whether the picture of an earlier run is what is asked for now; if not, it is said."""
        asked, before = self._asked(request), self.results.place(job)
        for place in dict.fromkeys(each for each in (before, job.place) if each is not None):
            if not place.is_file():
                continue
            if not (why := differs(place, asked)):
                if place != before:  # a run was killed between the picture and its result
                    self.results.succeeded(job, place, asked)
                return True
            click.echo(f"line {job.line}: painted again, since {place}: {why}", err=True)
        return False

    def _asked(self, request: Request) -> dict[str, object]:
        return parameters(self.bundle, request, 0, self._tiling)

    def _count(self, outcome: str) -> None:
        self.count[outcome] += 1
        self.progress("jobs", self.count.total(), self.total)


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
    foreign -= {*needed}
    if foreign:
        raise RequestError(f"a job with {kind!r} has no field {min(foreign)!r}; leave it out")
    if kind == "source":
        return Request.of_edit(manifest, **asked)
    return Request.of(manifest, asked.pop("prompt"), **asked)
