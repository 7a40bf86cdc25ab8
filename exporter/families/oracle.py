"""The public implementations as oracles: transformers and diffusers, in float32, on the same weights.

Where they can open a part's files by themselves they do, so that a fault of our reader cannot hide; else they
get the tensors that our reader found, and a verification says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.tensorfile import Decoded

Values = dict[str, Tensor]
SEED = 0
BATCH, TEXT, GRID = 2, 20, (3, 5)
"""Of every case: rows, text tokens, rows and columns of latent tokens."""


@dataclass(frozen=True)
class Case:
    """Inputs of a stage, by their names, and what the oracle makes of them."""

    inputs: Values
    expected: Values
    oracle: str = ""
    """Whose model it is, and whose reader its weights came through."""


def loads_itself(part: Part) -> bool:
    """Whether the public loaders can open the part: a folder of weights that are not quantised."""
    return part.folder is not None and not any(isinstance(each, Decoded) for each in part.tensors.values())


def opened(kind: Any, part: Part, library: str, fill: Callable[[], nn.Module]) -> tuple[Any, str]:
    """A public model with the part's weights in float32, and who read them; what is drawn next is seeded.

    Args:
        kind: the class, with a `from_pretrained`.
        part: whose weights.
        library: the name of the class's library.
        fill: makes the model of the tensors that our reader found, where the class cannot open the files.
    """
    if loads_itself(part):
        dtype = {"torch_dtype" if library == "diffusers" else "dtype": torch.float32}
        with _no_bars():
            model, read_by = kind.from_pretrained(part.folder, local_files_only=True, **dtype), library
    else:
        model, read_by = fill().float(), f"{library}, weights read by flux_trt"
    torch.manual_seed(SEED)  # making a model draws numbers, too
    return model.eval(), read_by


@contextmanager
def _no_bars() -> Iterator[None]:
    """The libraries' own progress bars are not ours to show."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    for each in (diffusers, transformers):
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in (diffusers, transformers):
            each.enable_progress_bar()


def filled(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The model with a state; what a state lacks must be tied."""
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    return model


def state(part: Part) -> Values:
    """All tensors of a part, as our reader finds them."""
    return {name: info.read() for name, info in part.tensors.items()}
