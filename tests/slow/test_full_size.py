"""The exporter at FLUX.1's full size: 11.9 B parameters in a sparse BFL-named file."""

from __future__ import annotations

from pathlib import Path

import pytest
from full_size import measure

pytestmark = pytest.mark.slow


def test_full_size_needs_little_memory_and_no_copy_of_the_weights(tmp_path: Path) -> None:
    found = measure(tmp_path)
    assert found["parameters"] == 11_901_408_320
    assert found["peak_rss_gb"] <= 1.5
    assert found["weights_linked"]
    assert found["bundle_own_mb_on_disk"] < 20
