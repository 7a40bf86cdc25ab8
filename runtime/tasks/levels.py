"""The noise levels that a request walks: the bundle's schedule, another shift, or the caller's own levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.rules import Constant, Schedule
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.sampling import schedule


@dataclass(frozen=True)
class Levels:
    """How many levels, by which rule, for pictures of any size."""

    rule: Schedule
    steps: int
    given: tuple[float, ...] | None = None
    """The caller's, before the rule's shift; None: evenly spaced."""

    @classmethod
    def asked(
        cls,
        rule: Schedule,
        steps: int | None,
        default: int,
        shift: float | None,
        sigmas: Sequence[float] | None,
    ) -> Levels:
        """What is asked for, checked.

        Args:
            rule: the bundle's.
            steps: None: as many as `sigmas` has, or the default.
            default: number of steps.
            shift: instead of the rule's, for every size alike, as
                FlowMatchEulerDiscreteScheduler(shift=..., use_dynamic_shifting=False) has it; 1 is none.
            sigmas: noise levels from 1 down, before the shift, as the argument of that name of diffusers'
                pipelines; the final 0 may be there or not.

        Raises:
            RequestError: numbers that are no schedule, or as many steps as there are not levels.
        """
        if shift is not None:
            rule = Constant(shift=_positive("shift", shift), round=rule.round)
        if sigmas is None:
            return cls(rule, default if steps is None else steps)
        levels = _levels(sigmas)
        if steps is not None and steps != len(levels):
            raise RequestError(
                f"{len(levels)} sigmas are given for {steps} steps; leave --steps out, or give as many"
            )
        return cls(rule, len(levels), levels)

    def sigmas(self, tokens: int) -> npt.NDArray[np.float32]:
        """Levels down to 0, float32 [steps + 1], for so many tokens of the target picture."""
        return schedule.sigmas(self.rule, self.steps, tokens, self.given)


def _positive(name: str, number: float) -> float:
    try:
        found = float(number)
    except (TypeError, ValueError):
        raise RequestError(f"{name} {number!r} is not a number; give one above 0") from None
    if not (math.isfinite(found) and found > 0):
        raise RequestError(
            f"{name} {found:g} is not possible; it must be above 0 (1 leaves the levels alone)"
        )
    return found


def _levels(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Given levels without the final 0: at least one, strictly falling, above 0 and at most 1."""
    try:
        found = [float(each) for each in sigmas]
    except (TypeError, ValueError):
        raise RequestError(
            "sigmas are not a list of numbers; give noise levels from 1 down, as 1,0.75,0.5"
        ) from None
    if len(found) > 1 and found[-1] == 0:
        found.pop()
    falling = all(high > low for high, low in pairwise(found))
    if not found or not falling or not all(0 < each <= 1 for each in found):
        raise RequestError(
            f"sigmas {', '.join(f'{each:g}' for each in sigmas)} are no schedule; "
            f"they must fall from at most 1 to above 0, each below the one before"
        )
    return tuple(found)
