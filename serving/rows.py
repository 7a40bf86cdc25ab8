"""How many rows pay at which size: a table that `flux-bench rows` measures and `flux-serve --rows` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from flux_trt.runtime.errors import RequestError

GAIN = 0.03
"""By how much a row's time must fall for another row to pay."""


def read(path: Path) -> dict[int, int]:
    """The table of a file: pixels, and the rows up to there.

    Raises:
        RequestError: not such a file.
    """
    try:
        found = json.loads(path.read_bytes())["rows"]
        table = {int(pixels): int(rows) for pixels, rows in found.items()}
        if not table or min(table) < 1 or min(table.values()) < 1:
            raise ValueError("numbers below 1")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise RequestError(f"{path} is no table of rows ({fault}); make one with flux-bench rows") from None
    return table


def worth(seconds: Mapping[int, float]) -> int:
    """The most rows of one run that pay: a row's time falls on the way there by 3 % each time.

    Args:
        seconds: of a run, by its rows.
    """
    best, least = 0, float("inf")
    for rows, taken in sorted(seconds.items()):
        if best and taken / rows > least * (1 - GAIN):
            break
        best, least = rows, taken / rows
    return best
