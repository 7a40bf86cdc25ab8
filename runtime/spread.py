"""Jobs over the machines of a cluster: Ray Data hands groups of them to actors, each with a pipeline.

Pictures are written by the actors, at places that all machines share; results come back as rows, in order,
and are noted here, as those of a run in one process are. An actor that is lost is replaced, and paints again
what it had not handed back.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flux_trt.runtime import cluster, errors, session
from flux_trt.runtime.errors import BackendError, FluxTrtError
from flux_trt.runtime.jobrun import Groups, Run, asked_by
from flux_trt.runtime.jobs import BadLine, Fields, Job
from flux_trt.runtime.outputs import Writing
from flux_trt.runtime.progress import silent
from flux_trt.runtime.session import Machine

BLOCKS = 1000  # at most: each is a task of Ray; what an actor has of one is handed back at once

_log = logging.getLogger(__name__)


def over(actors: int | None) -> Callable[[Run, Groups], None]:
    """What paints groups of jobs with so many actors; None: one for each GPU of the cluster."""

    def spread(run: Run, groups: Groups) -> None:
        each = [[job for job, _ in group] for group in groups]
        if each:  # else Ray need not start
            with cluster.joined("ray.data") as found:
                _spread(run, each, actors or found.actors(run.machine.device), found)

    return spread


def _spread(run: Run, groups: Sequence[Sequence[Job]], actors: int, found: cluster.Cluster) -> None:
    import ray.data

    actors = min(actors, len(groups))
    share = found.share(run.machine.device, run.machine.threads, actors)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that it tells nothing
    jobs = {job.line: job for group in groups for job in group}
    rows = [{"group": json.dumps([_record(job) for job in group])} for group in groups]
    machine = replace(run.machine, threads=share.threads, progress="none")
    painted = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS)).map_batches(
        Painter,
        fn_constructor_args=(Path.cwd(), run.bundle.root, machine, run.writing),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=share.cpus,
        num_gpus=share.gpus or None,
    )
    for row in painted.iter_rows():
        _note(run, jobs, json.loads(row["noted"]))


def _note(run: Run, jobs: Mapping[int, Job], told: Mapping[str, Any]) -> None:
    """What an actor tells of a group."""
    for line in told["warnings"]:
        _log.warning("%s", line)
    for each in told["jobs"]:
        job = jobs[each["line"]]
        if each["ok"]:
            run.note(job, each["parameters"])
        else:
            run.fail(job, each["error"])
    if fault := told["fault"]:
        kind = getattr(errors, fault["kind"], BackendError)
        raise kind(fault["message"])


class Painter:
    """An actor: one pipeline, and the results of the group at hand."""

    def __init__(self, folder: Path, bundle: Path, machine: Machine, writing: Writing) -> None:
        """Open the bundle; it is loaded with the first group.

        Args:
            folder: where the command was called, and its paths start.
            bundle: a bundle's folder.
            machine: what a pipeline is loaded with.
            writing: how pictures are written.
        """
        if folder.is_dir():
            os.chdir(folder)
        self._heard = _Heard()
        self._noted: list[dict[str, Any]] = []
        self._run = Run(session.open_bundle(bundle, machine), machine, writing, self, 0, silent)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Paint the group of a row; what went wrong is told in the row, since a fault would end them all."""
        (text,) = batch["group"]
        fault: dict[str, str] | None = None
        try:
            self._paint([_job(each) for each in json.loads(text)])
        except FluxTrtError as found:  # of the pipeline itself: no job can be painted
            fault = {"kind": type(found).__name__, "message": str(found)}
        told = {"jobs": self._noted, "warnings": self._heard.taken(), "fault": fault}
        self._noted = []
        return {"noted": [json.dumps(told)]}

    def succeeded(self, job: Job, output: Path, parameters: Mapping[str, Any]) -> None:
        """Note a picture that has been written."""
        self._noted.append({"line": job.line, "ok": True, "parameters": dict(parameters)})

    def failed(self, job: Job | BadLine, error: str) -> None:
        """Note what went wrong."""
        self._noted.append({"line": job.line, "ok": False, "error": error})

    def place(self, job: Job) -> Path | None:
        """Earlier runs are known to who hands the groups out."""
        return None

    def owner(self, place: Path) -> str | None:
        """The same."""
        return None

    def _paint(self, jobs: Sequence[Job]) -> None:
        group, requests = [], []
        for job in jobs:
            try:
                requests.append(asked_by(job, self._run.bundle.manifest))
                group.append(job)
            except FluxTrtError as fault:  # such as a picture that was there a moment ago
                self.failed(job, str(fault))
        if group:
            self._run.paint(group, requests)


class _Heard(logging.Handler):
    """Warnings of the runtime, which may repeat a prompt: they go back to the command, into no log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []
        logger = logging.getLogger("flux_trt")
        logger.addHandler(self)
        logger.setLevel(logging.WARNING)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def taken(self) -> list[str]:
        """Those since the last time, each once."""
        found, self._lines = list(dict.fromkeys(self._lines)), []
        return found


def _record(job: Job) -> dict[str, Any]:
    fields = job.fields.model_dump(mode="json", exclude_none=True)
    return {"line": job.line, "key": job.key, "place": str(job.place), "fields": fields}


def _job(record: Mapping[str, Any]) -> Job:
    fields = Fields.model_validate_json(json.dumps(record["fields"]))
    return Job(record["line"], record["key"], fields, Path(record["place"]))
