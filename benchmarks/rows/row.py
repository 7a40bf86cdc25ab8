"""A row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = tuple[str, str, str]
Results = Mapping[str, Any]


def at_most(target: float | None, unit: str) -> str:
    """A target as the table says it; empty without one."""
    return "" if target is None else f"at most {target:g} {unit}"
