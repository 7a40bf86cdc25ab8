"""Ray as it is started here: nothing is told to its makers, and no cluster is joined by chance.

`RAY_ADDRESS` names a cluster that runs; without it one of this machine alone is started, and ended again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from flux_trt.runtime.errors import BackendError, RequestError

STORE = 500_000_000  # bytes of shared memory in a cluster of our own: pictures on their way
REACH = 10.0  # seconds
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
"""Of the environment, where it says nothing else; Ray reads them when it is imported."""
OWN = {"RAY_AUTH_MODE": "token"}
"""The same for a cluster of our own: its processes listen on all addresses of a machine, whatever they are
told, and answer those alone who have the token. One that runs already has made its choice."""


@dataclass(frozen=True)
class Share:
    """What one actor takes of a cluster."""

    cpus: int
    gpus: int
    threads: int | None
    """That its pipeline computes on; None: as many as there are."""


@dataclass(frozen=True)
class Cluster:
    """Machines that Ray has put together."""

    resources: Mapping[str, float]
    own: bool
    """Whether it was started here: it does not grow."""

    def actors(self, device: str) -> int:
        """How many are started where nobody says it: one for each GPU; on CPUs one, which takes them all."""
        return max(1, int(self.resources.get("GPU", 0))) if self._on_gpus(device) else 1

    def share(self, device: str, threads: int | None, actors: int) -> Share:
        """What each of several actors takes.

        Args:
            device: "auto", "cpu" or "cuda".
            threads: of each on a CPU; None: the CPUs are divided.
            actors: how many there are at most.

        Raises:
            RequestError: they do not fit into a cluster that does not grow.
        """
        kind, each = ("GPU", 1) if self._on_gpus(device) else ("CPU", threads or self._cpus(actors))
        there = int(self.resources.get(kind, 0))
        if self.own and each * actors > there:
            raise RequestError(
                f"{actors} with {each} {kind}{'s' * (each > 1)} each do not fit into the {there} of here; "
                f"take fewer{' or less --threads' * (kind == 'CPU')}, or set RAY_ADDRESS to a cluster"
            )
        return Share(1, 1, threads) if kind == "GPU" else Share(each, 0, each)

    def _on_gpus(self, device: str) -> bool:
        return device == "cuda" or (device == "auto" and self.resources.get("GPU", 0) >= 1)

    def _cpus(self, actors: int) -> int:
        return max(1, int(self.resources.get("CPU", 1)) // actors)


@contextmanager
def joined(package: str = "ray") -> Iterator[Cluster]:
    """A cluster as long as it lasts.

    Args:
        package: of Ray that is used, such as "ray.serve".

    Raises:
        RequestError: Ray is not installed, or there is no cluster at `RAY_ADDRESS`.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    own = address == "local"
    for name, value in (SETTINGS | (OWN if own else {})).items():
        os.environ.setdefault(name, value)
    _expect_there(address)
    try:
        import importlib

        import ray

        importlib.import_module(package)
    except ModuleNotFoundError as fault:
        raise RequestError(
            f"--ray needs {fault.name}, which is not installed; "
            "install flux_trt with its extra: flux_trt[ray]"
        ) from None
    with _handlers_kept():
        try:
            if own:
                ray.init(
                    "local",
                    include_dashboard=False,
                    object_store_memory=STORE,
                    logging_level=logging.WARNING,
                )
            else:
                ray.init(address, logging_level=logging.WARNING)
        except ConnectionError as fault:
            why = " ".join(str(fault).split())
            raise RequestError(
                f"there is no cluster at RAY_ADDRESS {address} ({why:.200}); start it, or unset RAY_ADDRESS"
            ) from None
        except (OSError, RuntimeError) as fault:
            raise BackendError(f"Ray did not start: {' '.join(str(fault).split()):.300}") from fault
    try:
        yield Cluster(ray.cluster_resources(), own)
    finally:
        with _handlers_kept():
            ray.shutdown()


def _expect_there(address: str) -> None:
    """Refuse a cluster that does not answer; Ray itself asks for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError) as fault:
        raise RequestError(
            f"there is no cluster at RAY_ADDRESS {address} ({fault}); start it, or unset RAY_ADDRESS"
        ) from None


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes signals for itself, and ends the process with them at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
