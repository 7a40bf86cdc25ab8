"""The painter of a name: this toolkit on a backend, or a peer."""

from __future__ import annotations

from typing import cast

from flux_trt.bench.errors import BenchError
from flux_trt.bench.job import OURS, PEERS, Job, Painter, PeerName

# What a peer's process needs not is imported when it is asked for: it would count in the peer's cold start.


def make(name: str, job: Job) -> Painter:
    """Load the painter of that name.

    Raises:
        FluxTrtError: it cannot run here.
    """
    if name.startswith(OURS):
        from flux_trt.bench.ours import Ours

        return Ours(name.removeprefix(OURS), job)
    if name not in PEERS:
        raise BenchError(f"no peer is called {name!r}; there are: {', '.join(PEERS)}")
    try:
        from flux_trt.bench import peers

        return peers.make(cast(PeerName, name), job)
    except ModuleNotFoundError as fault:
        extra = "openvino" if fault.name == "openvino" else "export"
        raise BenchError(
            f"the peer {name} needs {fault.name}, which is not installed; install flux_trt[{extra}]"
        ) from None
