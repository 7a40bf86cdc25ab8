"""The replicas: deployed with Ray Serve, called, watched, and drained."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from flux_trt.runtime.cluster import Cluster, Share
from flux_trt.serving.engine import State
from flux_trt.serving.errors import ApiError
from flux_trt.serving.ray.crossing import Call, Message
from flux_trt.serving.ray.painter import Painter

NAME = "Painter"
WATCH = 1.0  # seconds between two looks at the replicas
AT_ONCE = 1000  # requests in one replica: its engine refuses by seconds, long before
WAITING = 1000  # requests that wait while there is no replica
BUSY = 4.0  # requests of a replica under which fewer replicas would do
LOGGING = {"enable_access_log": False, "log_level": "WARNING"}

_log = logging.getLogger(__name__)


class LostError(Exception):
    """The replica that was at work is there no more."""


@dataclass(frozen=True)
class Size:
    """How many replicas there are: as many as are asked for, or as traffic wants."""

    least: int
    most: int

    @property
    def options(self) -> dict[str, Any]:
        """As Ray Serve takes them."""
        if self.least == self.most:
            return {"num_replicas": self.most}
        scaling = {"min_replicas": self.least, "max_replicas": self.most, "target_ongoing_requests": BUSY}
        return {"autoscaling_config": scaling}


class Fleet:
    """Start it, call it, drain it: what `Engine` is to the plain server."""

    def __init__(
        self, name: str, make: Callable[[], FastAPI], size: Size, share: Share, cluster: Cluster
    ) -> None:
        """Do nothing yet.

        Args:
            name: of the application in the cluster.
            make: called in each replica for what it serves.
            size: how many replicas.
            share: what each takes of the cluster.
            cluster: that they run in.
        """
        self._name, self._make, self._size = name, make, size
        self._share, self._cluster = share, cluster
        self._state: State = "loading"
        self._why = "the replicas are being started"
        self._deployed = False
        self._under_way = 0
        self._changed = threading.Condition()
        self._handle: Any = None
        self.replicas = 0
        """That can be called."""
        self.lost = 0
        """Requests whose replica was lost."""
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)

    def start(self) -> None:
        """Deploy the replicas; be ready when one of them has painted."""
        self._thread.start()

    def join(self) -> None:
        """Wait until it was drained, or cannot go on."""
        self._thread.join()

    def close(self) -> None:
        """After `drain`: wait until a cluster that goes on has let go of the replicas."""
        if self._thread.ident and not self._cluster.own:
            self._thread.join(60)

    @property
    def state(self) -> tuple[State, str]:
        """Where it stands, and why."""
        return self._state, self._why

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A request, until it is answered; it waits where the last replica was lost and the next one loads.

        Raises:
            ApiError: 503 before the first replica is ready, and while it drains.
        """
        with self._changed:
            if not self._deployed or self._state in ("draining", "stopped", "broken"):
                raise ApiError(503, f"{self._why}; try again later", code=self._state, retry_after=5)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    async def call(self, call: Call) -> AsyncIterator[Message]:
        """The answer of a replica, message by message.

        Raises:
            LostError: its process has ended.
            ApiError: too many requests wait, or Ray Serve itself fails.
        """
        stream = self._handle.options(method_name="call", stream=True).remote(call)
        done = False
        try:
            async for message in stream:
                yield message
            done = True
        except BackPressureError:
            raise ApiError(
                429, "too many requests wait for a replica; try again later", code="queue_full", retry_after=5
            ) from None
        except RayTaskError as fault:
            _log.error("%s: a fault of the server: %s", call.state["id"], type(fault.cause).__name__)
            raise ApiError(500, "a fault of the server; its log has it", code="internal_error") from None
        except (RayError, RayServeException) as fault:
            self.lost += 1
            _log.warning("%s: its replica is lost (%s)", call.state["id"], type(fault).__name__)
            raise LostError from None
        finally:
            if not done:
                stream.cancel()

    async def pages(self) -> list[tuple[str, bytes]]:
        """What each replica has counted, by its name; one that does not answer in time is left out."""
        if not self._deployed:
            return []
        found = self._handle.broadcast("metrics")
        pages = await found.results_async(timeout_s=5, return_exceptions=True)
        return [each for each in pages if isinstance(each, tuple)]

    def drain(self, seconds: float | None = None) -> bool:
        """Take no more, and wait until all is answered; whether it was.

        Args:
            seconds: how long to wait; what is left then is given up.
        """
        with self._changed:
            if self._state in ("loading", "ready"):
                self._state, self._why = "draining", "the server is about to stop"
            done = self._changed.wait_for(lambda: not self._under_way, seconds)
            if self._state == "draining":
                self._state, self._why = "stopped", "the server has stopped"
            self._changed.notify_all()
        return done

    def _run(self) -> None:
        try:
            self._deploy()
            while self._state in ("loading", "ready", "draining"):
                self._look()
                with self._changed:
                    self._changed.wait_for(lambda: self._state in ("stopped", "broken"), WATCH)
        except Exception as fault:
            with self._changed:
                if self._state not in ("draining", "stopped"):
                    self._state, self._why = "broken", f"Ray Serve has failed: {_last(str(fault))}"
                self._changed.notify_all()
        finally:
            if not self._cluster.own:
                serve.delete(self._name, _blocking=False)

    def _deploy(self) -> None:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled", logging_config=LOGGING)
        deployment = serve.deployment(
            name=NAME,
            **self._size.options,
            max_ongoing_requests=AT_ONCE,
            max_queued_requests=WAITING,
            health_check_period_s=2,
            health_check_timeout_s=60,
            graceful_shutdown_timeout_s=600,
            ray_actor_options={"num_cpus": self._share.cpus, "num_gpus": self._share.gpus},
            logging_config=LOGGING,
        )(Painter)
        target = serve.RunTarget(deployment.bind(self._make), name=self._name, route_prefix=None)
        (self._handle,) = serve.run_many([target], wait_for_applications_running=False)

    def _look(self) -> None:
        found = serve.status().applications.get(self._name)
        states = found.deployments[NAME].replica_states if found and NAME in found.deployments else {}
        self.replicas = sum(count for state, count in states.items() if state == "RUNNING")
        with self._changed:
            if self._state not in ("loading", "ready"):
                return
            if self.replicas:
                self._state, self._why, self._deployed = "ready", "", True
            elif found and found.status == "DEPLOY_FAILED":
                why = _last(found.deployments[NAME].message or found.message)
                self._state, self._why = "broken", f"the replicas cannot be started: {why}"
            else:
                self._state, self._why = "loading", "no replica is ready"


def _last(text: str) -> str:
    """One line of what may be a page of Ray's: the last, which has the fault itself."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    found = lines[-1] if lines else "Ray does not say why"
    return f"{re.sub(r'^flux_trt[.][.a-z]+[.][A-Za-z]+: ', '', found):.300}"
