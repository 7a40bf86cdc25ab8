"""The public implementations as oracles: transformers and diffusers, in float32, on the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from flux_trt.exporter.checkpoints.checkpoint import Part

Values = dict[str, Tensor]
BATCH, TEXT, GRID = 2, 20, (3, 5)
"""Of every case: rows, text tokens, rows and columns of latent tokens."""


@dataclass(frozen=True)
class Case:
    """Inputs of a stage, by their names, and what the oracle makes of them."""

    inputs: Values
    expected: Values


def loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The model with a state in float32; what a state lacks must be tied."""
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    return model.float().eval()


def state(part: Part) -> Values:
    """All tensors of a part, as they lie in its files."""
    return {name: info.read() for name, info in part.tensors.items()}
