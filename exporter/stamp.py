"""When something was made, for files whose bytes are to depend on their inputs alone."""

from __future__ import annotations

import datetime
import os

from flux_trt.runtime.errors import BuildError

VARIABLE = "SOURCE_DATE_EPOCH"


def stamp() -> str | None:
    """The time that SOURCE_DATE_EPOCH gives, as ISO 8601; None without it, so that equal builds are equal.

    Source: reproducible-builds.org/specs/source-date-epoch.

    Raises:
        BuildError: it is no time.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return None
    try:
        return datetime.datetime.fromtimestamp(int(given), datetime.UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        raise BuildError(
            f"{VARIABLE} is {given!r}, not seconds since 1970; set it to such a number, or unset it"
        ) from None
