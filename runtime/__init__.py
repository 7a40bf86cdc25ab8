"""Paint with a bundle: bundle -> backend -> pipeline -> picture. No PyTorch, no ONNX.

Read in this order: `pipeline` (what is wanted), `manifest` (what a bundle must deliver), `bundle`, `request`,
`tokenizer`, `schedule`, `noise`, `latents`, `course` and `tasks` (where latents start), `loop` and `moves`
(how they go on), `backend` (what runs graphs), `ort` (the embedded one), `vae`, `tiles`, `memory`, `loaded`,
`picture`, `session`, `cli`. On a GPU: `device`, `engine`, `flavour`, `tensorrt`.
"""

from typing import TYPE_CHECKING, Any

from flux_trt.runtime.errors import FluxTrtError

if TYPE_CHECKING:
    from flux_trt.runtime.pipeline import Pipeline

__all__ = ["FluxTrtError", "Pipeline"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from flux_trt.runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
