"""Paint with a bundle: bundle -> backend -> pipeline -> picture. No PyTorch, no ONNX.

The roof is what a person calls: `pipeline` (from Python), `cli` with `options` and `session` (from a shell),
`jobs` (a file of many) with its `results` and `jobrun`, `painted` (what comes out), `outputs` (where to),
`again` (the same once more from a picture's file). Under it lie the rooms, each of which imports only what
stands below it:

    tasks       what is asked for, and the trajectory of latents that it becomes
    sampling    noise levels, noise, positions, and the loop that walks a trajectory
    pictures    pictures on disk, as arrays, and as latents through the VAE
    backends    what runs graphs: onnxruntime, OpenVINO, TensorRT
    bundle      a bundle on disk, its manifest, its engines, its text windows, and which stage feeds which

and at the ground `errors`, `progress`, `notation`, `lock`. Start with `pipeline`, then `bundle/manifest`.
"""

from typing import TYPE_CHECKING, Any

from flux_trt.runtime.errors import FluxTrtError

if TYPE_CHECKING:
    from flux_trt.runtime.again import recorded
    from flux_trt.runtime.pictures.written import write as save
    from flux_trt.runtime.pipeline import Pipeline

__all__ = ["FluxTrtError", "Pipeline", "recorded", "save"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from flux_trt.runtime.pipeline import Pipeline

        return Pipeline
    if name == "save":
        from flux_trt.runtime.pictures.written import write

        return write
    if name == "recorded":
        from flux_trt.runtime.again import recorded

        return recorded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
