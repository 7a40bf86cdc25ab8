"""How much a server takes of what clients send, and how many rows of a size share a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MEGA = 1_000_000
ROWS = {262_144: 8, 524_288: 4, 1_100_000: 2}
"""Rows of the denoiser that share a run, up to so many pixels; one above. As measured on an H200 for a model
of 20 B (sglang#22183): at 512x512 eight rows take 2.5 times as long as one, at 1024x1024 a second one gains
nothing."""


@dataclass(frozen=True)
class Limits:
    """Numbers that bound what one client, and all of them, can cost."""

    queue_seconds: float = 120.0
    """Of painting that may wait; what would come on top is refused."""
    rows: int | None = None
    """Of the denoiser in one run, at most, whatever the size; None: the table alone."""
    table: Mapping[int, int] = field(default_factory=lambda: dict(ROWS))
    """Pixels, and the rows that share a run up to there."""
    active: int = 32
    """Pictures that are begun and not done: each has buffers of its own."""
    adapted: int = 4
    """Sets of LoRAs that pictures under way may have: each takes memory of its own."""
    megapixels: float = 4.2
    """Of a picture that is painted."""
    given_megapixels: float = 16.0
    """Of a picture that is sent, before it is decoded."""
    pictures: int = 10
    """Of one request: OpenAI's `n`."""
    steps: int = 200
    file_bytes: int = 50 * MEGA
    """Of one picture that is sent."""
    body_bytes: int = 120 * MEGA
    decoders: int = 2
    """Pictures that are decoded or encoded at once."""

    def rows_of(self, pixels: int) -> int:
        """Rows of the denoiser that share a run for pictures of so many pixels."""
        found = next((rows for most, rows in sorted(self.table.items()) if pixels <= most), 1)
        return found if self.rows is None else min(found, self.rows)
