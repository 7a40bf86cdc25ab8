"""The solver that is asked for: whether the bundle has what it needs, and the model any use for it."""

from __future__ import annotations

import logging
from typing import Any, get_args

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.sampling.trajectory import Solver

FEW = 8
"""Steps: a model whose own number is at most this was distilled to make straight jumps."""

_log = logging.getLogger(__name__)


def solver_of(manifest: Manifest, asked: Any) -> Solver:
    """The solver of a request.

    Args:
        manifest: of the bundle.
        asked: its name; None: Euler.

    Raises:
        RequestError: no such solver, or a bundle that was built before there was one.
    """
    found = _known(asked)
    if found == "ab2":
        if manifest.stages and "ab2" not in manifest.glue:
            raise RequestError(
                "solver ab2 needs a graph that this bundle was built without; build the bundle again, or use "
                "--solver euler"
            )
        if (steps := manifest.defaults.steps) <= FEW:
            _log.warning(
                "solver ab2 gains nothing here: a %s bundle is of a model that was distilled for %d step%s; "
                "leave --solver out",
                *(manifest.variant, steps, "" if steps == 1 else "s"),
            )
    return found


def solver_of_edit(asked: Any) -> None:
    """Refuse any but Euler for an edit: its velocities are differences under fresh noise, without a history.

    Raises:
        RequestError: that, or no such solver.
    """
    if _known(asked) != "euler":
        raise RequestError(
            f"an edit is walked by Euler's steps, since each takes fresh noise; solver {asked} is for "
            "generate, leave it out"
        )


def _known(asked: Any) -> Solver:
    for known in get_args(Solver):
        if asked == known:
            return known
    if asked is None:
        return "euler"
    raise RequestError(f"solver {asked!r} is unknown; it is {' or '.join(get_args(Solver))}")
