"""Jobs: requests that outlive their connection, and the process: kept in a folder until they expire.

A job is a folder named by its random id, which nobody can guess: `job.json`, the pictures that were sent, and
those that were painted. Its seed is drawn when it is taken, so that a job that is begun again after a restart
paints the same pictures.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from flux_trt.runtime.pictures import part
from flux_trt.serving import asked
from flux_trt.serving.answer import KINDS, extras, file_of
from flux_trt.serving.engine import Engine
from flux_trt.serving.errors import ApiError, told
from flux_trt.serving.fields import Fields
from flux_trt.serving.images import made
from flux_trt.serving.work import Done, Event, Failed, Moved, Work

ID = re.compile(r"imgjob_[0-9a-f]{32}")
RECORD = "job.json"
PATIENCE = 1.0  # seconds between two attempts to hand in what was left by the process before

_log = logging.getLogger(__name__)


class Job(BaseModel):
    """What is known of one."""

    model_config = ConfigDict(extra="forbid")

    id: str
    owner: str
    fields: dict[str, Any]
    given: dict[str, int]
    """How many pictures were sent, by parameter; a job without any paints from text."""
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"] = "queued"
    progress: int = 0
    """Per cent of the steps."""
    created_at: int
    completed_at: int | None = None
    expires_at: int
    error: dict[str, Any] | None = None
    data: list[dict[str, Any]] = []
    warnings: list[str] = []

    @property
    def over(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.status in ("completed", "failed", "cancelled")

    def shown(self) -> dict[str, Any]:
        """To its owner; never the prompt's way back into a log, nor a path."""
        found = self.model_dump(exclude={"owner", "given", "fields"})
        return {"object": "image.job", "model": self.fields.get("model"), **found}


class Jobs:
    """All of a folder, and those of them that the engine has."""

    def __init__(self, folder: Path, engine: Engine, hours: float) -> None:
        """Read what is there.

        Args:
            folder: one that this server alone writes to; made where it is missing.
            engine: that paints.
            hours: how long a job is kept once it was taken.
        """
        self.engine = engine
        self._folder, self._hours = folder, hours
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._works: dict[str, Work] = {}
        self._jobs: dict[str, Job] = {}
        self._files = ThreadPoolExecutor(1, "jobs")
        for path in folder.glob(f"*/{RECORD}"):
            if ID.fullmatch(path.parent.name):
                try:
                    self._jobs[path.parent.name] = Job.model_validate_json(path.read_bytes())
                except (OSError, ValueError):
                    _log.warning("%s is no job that can be read; it stays as it is", path.parent.name)

    def resume(self) -> None:
        """Hand in again what the process before has not finished, once the engine takes work."""
        left = [job for job in self._jobs.values() if not job.over]
        if left:
            threading.Thread(target=self._resume, args=(left,), name="resume", daemon=True).start()

    def add(
        self, owner: str, fields: Fields, files: Mapping[str, list[bytes]], key: str | None = None
    ) -> tuple[Job, bool]:
        """A new job, written down but not handed in; with a key that was sent before, that one's job.

        Args:
            owner: who may see it.
            fields: what is asked for; a seed is drawn where there is none.
            files: the pictures that were sent.
            key: of idempotency.

        Returns:
            The job, and whether it is new.

        Raises:
            ApiError: a key that was sent with other fields.
        """
        self._sweep()
        named = secrets.token_hex(16) if key is None else sha256(f"{owner}\n{key}".encode()).hexdigest()[:32]
        now, known = int(time.time()), fields.model_dump(mode="json", exclude_unset=True)
        with self._lock:
            if before := self._jobs.get(f"imgjob_{named}"):
                if {**known, "seed": None} != {**before.fields, "seed": None}:
                    raise ApiError(400, "this Idempotency-Key was sent with other fields; take a new one")
                return before, False
            job = Job(
                id=f"imgjob_{named}",
                owner=owner,
                fields={"seed": secrets.randbelow(asked.SEEDS), **known},
                given={name: len(each) for name, each in files.items()},
                created_at=now,
                expires_at=now + round(3600 * self._hours),
            )
            place = self._folder / job.id
            place.mkdir(mode=0o700)
            for name, several in files.items():
                for index, data in enumerate(several):
                    part.write(place / f"{name}-{index}", data)
            self._jobs[job.id] = job
            self._save(job)
        return job, True

    def hand_in(self, job: Job, work: Work) -> None:
        """Let the engine paint it.

        Raises:
            ApiError: it takes none now.
        """
        self._submit(job, work, Fields.model_validate(job.fields))

    def find(self, name: str, owner: str) -> Job:
        """One by its id.

        Raises:
            ApiError: 404 where there is none of this owner's.
        """
        job = self._jobs.get(name)
        if job is None or job.owner != owner or time.time() > job.expires_at:
            raise ApiError(404, "there is no such job, or it has expired", code="job_not_found")
        return job

    def of(self, owner: str) -> list[Job]:
        """All of one owner, the newest first."""
        now = time.time()
        found = [each for each in self._jobs.values() if each.owner == owner and now <= each.expires_at]
        return sorted(found, key=lambda each: -each.created_at)

    def cancel(self, job: Job) -> None:
        """Give it up; one that is over stays as it is."""
        with self._lock:
            if not job.over:
                job.status, job.completed_at = "cancelled", int(time.time())
                self._save(job)
        if work := self._works.pop(job.id, None):
            self.engine.cancel(work)

    def remove(self, job: Job) -> None:
        """Give it up and delete all of it."""
        self.cancel(job)
        with self._lock:
            self._jobs.pop(job.id, None)
            shutil.rmtree(self._folder / job.id, ignore_errors=True)

    def picture(self, job: Job, index: int) -> tuple[bytes, str]:
        """A painted one's file, and its media type.

        Raises:
            ApiError: it is not there.
        """
        kind = job.fields.get("output_format", "png")
        try:
            return (self._folder / job.id / f"{index}.{kind}").read_bytes(), f"image/{kind}"
        except OSError:
            raise ApiError(404, f"picture {index} is not there; see data", code="picture_not_found") from None

    def given(self, job: Job) -> dict[str, list[bytes]] | None:
        """The pictures that were sent; None for a job that paints from text."""
        if not any(job.given.values()):
            return None
        place = self._folder / job.id
        return {
            name: [(place / f"{name}-{index}").read_bytes() for index in range(count)]
            for name, count in job.given.items()
        }

    def _submit(self, job: Job, work: Work, fields: Fields) -> None:
        work.tell = lambda event: self._told(job, work, fields, event)
        job.data = []
        self._works[job.id] = work
        self.engine.submit(work)

    def _resume(self, left: list[Job]) -> None:
        while self.engine.state[0] == "loading":
            time.sleep(PATIENCE / 10)
        for job in left:
            while not job.over:
                try:
                    fields = Fields.model_validate(job.fields)
                    work = made(self.engine, fields, self.given(job), job.id, job.owner)
                    self._submit(job, work, fields)
                    break
                except ApiError as fault:
                    if fault.retry_after is None:
                        self._fail(job, fault)
                    elif self.engine.state[0] != "ready":
                        return
                    time.sleep(PATIENCE)
                except (OSError, ValueError):
                    self._fail(job, ApiError(500, "its files cannot be read any more", code="lost"))

    def _told(self, job: Job, work: Work, fields: Fields, event: Event) -> None:
        """From the engine's thread: files are made and written by another."""
        if isinstance(event, Moved):
            if job.status == "queued":
                job.status = "in_progress"
            whole = len(work.request) * work.request.moves
            job.progress = min(99, 100 - round(100 * (work.left / work.request.copies) / whole))
        elif isinstance(event, Done):
            self._files.submit(self._done, job, work, fields, event)
        elif isinstance(event, Failed) and not job.over:
            if event.fault is None and event.again and self.engine.state[0] != "ready":
                return  # the process ends; the next one begins it again
            fault = told(event.fault) if event.fault else ApiError(500, event.why, code="unavailable")
            self._files.submit(self._fail, job, fault)

    def _done(self, job: Job, work: Work, fields: Fields, done: Done) -> None:
        try:
            data = file_of(done.painted.image, fields)
            with self._lock:
                if job.over:
                    return
                part.write(self._folder / job.id / f"{done.index}.{fields.output_format}", data)
                job.data = sorted(
                    [*job.data, {"index": done.index, **extras(work, done)}], key=lambda each: each["index"]
                )
                if len(job.data) == len(work.request):
                    job.status, job.progress, job.completed_at = "completed", 100, int(time.time())
                    job.warnings = list(work.warnings)
                    self._works.pop(job.id, None)
                self._save(job)
        except OSError:
            _log.exception("%s cannot be written", job.id)
            self._fail(job, ApiError(500, "the pictures could not be written", code="storage_failed"))

    def _fail(self, job: Job, fault: ApiError) -> None:
        with self._lock:
            if job.over:
                return
            job.status, job.completed_at = "failed", int(time.time())
            job.error = fault.body["error"]
            self._works.pop(job.id, None)
            self._save(job)

    def _save(self, job: Job) -> None:
        part.write(self._folder / job.id / RECORD, job.model_dump_json().encode())

    def _sweep(self) -> None:
        now = time.time()
        for job in [each for each in self._jobs.values() if now > each.expires_at]:
            self.remove(job)


assert set(KINDS) == {"png", "jpeg", "webp"}
