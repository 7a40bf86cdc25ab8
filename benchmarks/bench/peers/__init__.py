"""Other ways to run the same checkpoint: diffusers itself, and conversions of its modules.

The only files of flux-bench that import diffusers, each when it is chosen, in a worker's process. A new
peer is a module with a `convert`, which swaps diffusers' modules for its own, and a line in `make`.
"""

from __future__ import annotations

from flux_trt.bench.job import Job, Painter, PeerName


def make(name: PeerName, job: Job) -> Painter:
    """Load a peer; it brings torch and diffusers in.

    Raises:
        BenchError: it cannot run here.
        ModuleNotFoundError: a package of it is not installed.
    """
    from functools import partial

    from flux_trt.bench.peers.eager import Diffusers, compiled

    if name == "diffusers":
        return Diffusers(job)
    if name == "compile":
        return compiled(job)
    if name == "onnx-export":
        from flux_trt.bench.peers.exported import convert

        return Diffusers(job, partial(convert, threads=job.threads))
    from flux_trt.bench.peers.openvino import convert as convert_openvino

    return Diffusers(job, partial(convert_openvino, threads=job.threads))
