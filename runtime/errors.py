"""The errors of the toolkit.

* FluxTrtError             an expected fault: one line, what and what to do; commands exit 1
  + CheckpointError        a checkpoint that cannot become a bundle
  + BuildError             a stage that cannot be traced or written
  + BundleError            a bundle that is missing, incomplete, newer, or not what its manifest says
  + BackendError           a graph that this machine cannot run
    + GpuMemoryError       a GPU with too little memory
  + RequestError           a prompt, size, picture or number that this bundle cannot serve
  + PaintError             a run that went wrong, such as latents that are not finite
"""

from __future__ import annotations

LONGEST = 2000
"""Letters of a message; what is longer loses its middle."""


class FluxTrtError(Exception):
    """An expected fault. The message is one line: what is wrong, then what to do.

    Names out of files that others wrote may be part of it: what is no printable letter (a newline, a
    terminal's escape, half a surrogate) is shown as an escape, and what is very long is cut.
    """

    def __init__(self, message: str = "") -> None:
        text = str(message)
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        super().__init__("".join(each if each.isprintable() else _escaped(each) for each in text))


class CheckpointError(FluxTrtError):
    """A checkpoint that cannot become a bundle."""


class BuildError(FluxTrtError):
    """A stage that cannot be traced or written."""


class BundleError(FluxTrtError):
    """A bundle that is missing, incomplete, newer than this tool, or not what its manifest says."""


class BackendError(FluxTrtError):
    """A graph that this machine cannot run."""


class GpuMemoryError(BackendError):
    """A GPU with too little memory for what was asked."""


class RequestError(FluxTrtError):
    """A prompt, size, picture or number that this bundle cannot serve."""


class PaintError(FluxTrtError):
    """A run that went wrong, such as latents that are not finite."""


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
