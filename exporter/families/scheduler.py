"""diffusers' scheduler configs: what the loop follows of them, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flux_trt.exporter.checkpoints.defaults import FLOW_MATCH_EULER
from flux_trt.runtime.bundle.rules import Constant, Exponential, Schedule
from flux_trt.runtime.errors import CheckpointError

NAME = "FlowMatchEulerDiscreteScheduler"
SHIFTING: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""FLUX.1-dev's numbers."""
PLAIN: dict[str, Any] = {**SHIFTING, "use_dynamic_shifting": False, "shift": 1.0}
"""FLUX.1-schnell's."""


def scheduler(
    config: Mapping[str, Any] | None, own: Mapping[str, Any], family: str, dynamic: Schedule | None = None
) -> Schedule:
    """The schedule of a checkpoint.

    Args:
        config: of `scheduler_config.json`, whole; None: there is none.
        own: the variant's numbers, where there is no config.
        family: for people.
        dynamic: how the family shifts by size; None: on the line that the numbers tell.

    Raises:
        CheckpointError: a scheduler that the loop does not follow.
    """
    if config is None:
        return _schedule(own, dynamic)
    if config.get("_class_name") != NAME:
        raise CheckpointError(f"the scheduler is {config.get('_class_name')}; {family} needs {NAME}")
    for name, value in config.items():
        if name in own or name.startswith("_"):
            continue
        if name not in FLOW_MATCH_EULER or value != FLOW_MATCH_EULER[name]:
            raise CheckpointError(
                f"the scheduler sets {name} to {value!r}, which {family}'s loop does not follow; take it out"
            )
    return _schedule({name: config[name] for name in own}, dynamic)


def _schedule(numbers: Mapping[str, Any], dynamic: Schedule | None) -> Schedule:
    """diffusers' numbers as a rule of the bundle."""
    if not numbers["use_dynamic_shifting"]:
        return Constant(shift=numbers["shift"], round=None)
    if dynamic is not None:
        return dynamic
    return Exponential(
        tokens=[numbers["base_image_seq_len"], numbers["max_image_seq_len"]],
        mu=[numbers["base_shift"], numbers["max_shift"]],
        round=None,
    )
