from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flux_trt.exporter.engines import cgroup, preflight
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
    ("capabilities", "kind", "message"),
    [
        (["8.6"], ("fp8", "bf16"), "fp8 needs sm 8.9 or newer, not 8.6; use --precision bf16"),
        (["7.5"], ("bf16", None), "bf16 needs sm 8.0 or newer, not 7.5; use --precision fp16"),
        (
            ["8.9", "9.0"],
            ("fp16", None),
            "no engines for sm 9.0; it builds for 7.5, .*; use --backend tensorrt",
        ),
        ([], ("fp16", None), "no GPU .* --sm 8.9"),
        (
            ["7.5"],
            ("int8", "bf16"),
            "int8 with bf16 around it needs sm 8.0 or newer, not 7.5; use --base fp16",
        ),
        (["7.5"], ("w8a16", "bf16"), "w8a16 with bf16 around it needs sm 8.0"),
        (["7.5"], ("w4a16", "fp16"), "w4a16 needs sm 8.0 .*; use --precision w8a16 --base fp16"),
        (["7.5"], ("fp32", None), "fp32 needs sm 8.0 or newer in tensorrt-rtx, not 7.5, and text encoders"),
        (["7.5"], ("int8", "fp32"), "fp32 needs sm 8.0 or newer in tensorrt-rtx, not 7.5"),
        (["12.0", "8.9"], ("nvfp4", "bf16"), "nvfp4 needs sm 10.0 or newer, not 8.9"),
    ],
)
def test_refused_targets(capabilities: list[str], kind: Any, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        refuse_targets(RTX, capabilities, [kind])


def test_good_targets() -> None:
    refuse_targets(RTX, ["8.9", "12.0"], [("fp8", "bf16"), ("bf16", None)])
    refuse_targets(RTX, ["7.5"], [("fp16", None), ("int8", "fp16")])
    refuse_targets(FLAVOURS["tensorrt"], ["7.5"], [("fp32", None)])
    refuse_targets(RTX, ["12.0", "12.1"], [("nvfp4", "bf16")])
    refuse_targets(FLAVOURS["tensorrt"], ["9.0"], [("fp8", "bf16")])
    refuse_targets(FLAVOURS["tensorrt"], ["10.0"], [("nvfp4", "bf16")])


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


def _group(folder: Path, limit: str, used: int, cache: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cache}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_all_groups_on_the_way_count(tmp_path: Path, version: int) -> None:
    (tmp_path / "self").mkdir()
    line = "0::/a/b\n" if version == 2 else "9:cpu,cpuacct:/x\n4:memory:/a/b\n"
    (tmp_path / "self" / "cgroup").write_text(line)
    root = tmp_path / "cgroup" / ("" if version == 2 else "memory")
    none = "max" if version == 2 else "9223372036854771712"
    _group(root / "a" / "b", "3000", 1000, 200, version)
    _group(root / "a", "1500", 1000, 100, version)
    _group(root, none, 10, 10, version)
    assert list(cgroup.available(tmp_path, tmp_path / "cgroup")) == [2200, 600]


def test_the_path_of_the_host_is_the_root_inside_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("4:memory:/docker/0123\n")
    _group(tmp_path / "cgroup" / "memory", "330", 100, 0, 1)
    assert list(cgroup.available(tmp_path, tmp_path / "cgroup")) == [230]
    assert list(cgroup.available(tmp_path / "nowhere", tmp_path)) == []


def test_the_least_of_machine_and_groups_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "available", lambda: iter([330_000_000]))
    assert available_memory() == 330_000_000
