"""A picture on its way: what the loop is heading for, written to a file every few steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flux_trt.runtime.backends.memory import MemoryMode
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import written
from flux_trt.runtime.pictures.latents import Grid
from flux_trt.runtime.step import Floats, Step

Decode = Callable[[Floats, Grid], Sequence[Image.Image]]
SHARE = 4  # of all steps between two previews, when nothing else is said


class Preview:
    """Told of each step, it writes the predicted picture of some; those of a batch side by side."""

    def __init__(self, path: Path, every: int | None, decode: Decode) -> None:
        """Write nothing yet.

        Args:
            path: of the PNG, which is always whole.
            every: how many steps are between two; None: a quarter of them all.
            decode: `Pipeline.decode`.
        """
        self._path, self._every, self._decode = path, every, decode

    def __call__(self, step: Step) -> None:
        """Write, if it is time; not after the last step, which the picture itself follows.

        Raises:
            RequestError: the file cannot be written.
        """
        every = self._every or max(1, step.steps // SHARE)
        if step.index % every or step.index == step.steps:
            return
        images = [np.asarray(each) for each in self._decode(step.predicted, step.grid)]
        written.write(Image.fromarray(np.concatenate(images, axis=1)), self._path)


def refuse_preview(path: Path | None, every: int | None, memory: MemoryMode, outputs: Sequence[Path]) -> None:
    """Refuse, before any work, what no preview can be of.

    Raises:
        RequestError: the file of a picture, or a memory mode in which every preview would load two stages.
    """
    if path is None:
        if every is not None:
            raise RequestError("--preview-every has no --preview; give the file of the preview too")
        return
    if path.absolute() in [each.absolute() for each in outputs]:
        raise RequestError(f"{path} is where a picture goes; give --preview another name")
    if memory == "sequential":
        raise RequestError(
            "--memory sequential would load the decoder and the denoiser anew for each preview; "
            "leave --preview out, or use --memory resident"
        )
