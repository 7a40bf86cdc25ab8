from __future__ import annotations

from pathlib import Path

import pytest

from flux_trt.exporter.engines import preflight
from flux_trt.exporter.engines.preflight import available_memory, refuse_short, refuse_targets
from flux_trt.runtime.bundle.engine import Recipe
from flux_trt.runtime.bundle.flavour import FLAVOURS
from flux_trt.runtime.errors import BuildError

RTX = FLAVOURS["tensorrt-rtx"]
RECIPE = Recipe(
    stage="denoiser",
    graph="0" * 64,
    precision="bf16",
    flavour="tensorrt-rtx",
    version="1",
    capabilities=["8.9"],
    profiles=[],
    plugins=[],
)


@pytest.mark.parametrize(
    ("capabilities", "precision", "message"),
    [
        (["8.6"], "fp8", "fp8 needs sm 8.9 or newer, not 8.6; use --precision bf16"),
        (["7.5"], "bf16", "bf16 needs sm 8.0 or newer, not 7.5; use --precision fp16"),
        (["8.9", "9.0"], "fp16", "no engines for sm 9.0; it builds for 7.5, .*; use --backend tensorrt"),
        ([], "fp16", "no GPU .* --sm 8.9"),
    ],
)
def test_refused_targets(capabilities: list[str], precision: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        refuse_targets(RTX, capabilities, [precision])


def test_good_targets() -> None:
    refuse_targets(RTX, ["8.9", "12.0"], ["fp8", "bf16"])
    refuse_targets(RTX, ["7.5"], ["fp16", "fp32"])
    refuse_targets(FLAVOURS["tensorrt"], ["9.0"], ["fp8"])


def test_memory_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 20_000_000_000)
    refuse_short([(RECIPE, 8_000_000_000)], tmp_path)
    with pytest.raises(BuildError, match=r"denoiser in bf16 needs about 35\.5 GB of memory and 20\.0 GB"):
        refuse_short([(RECIPE, 17_000_000_000)], tmp_path)


def test_disk_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"need about .* of disk and .* are free"):
        refuse_short([(RECIPE, 10**15)], tmp_path)


def test_available_memory_is_what_the_system_says() -> None:
    found = available_memory()
    assert found is None or 10**7 < found < 10**14
