"""What a stage is made by belongs to its key."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flux_trt.exporter import reuse
from flux_trt.exporter.build import build

ON_THE_WAY = """
import json, sys
from flux_trt.exporter.checkpoints import open
from flux_trt.exporter.families import plan, recognise
from flux_trt.exporter.graphs import trace, weights
from flux_trt.exporter.quantise import quantize
files = [getattr(m, "__file__", None) for n, m in sys.modules.items() if n.startswith("flux_trt.")]
print(json.dumps([each for each in files if each]))
"""
ROOFS = ("exporter/__init__.py", "runtime/__init__.py")
"""They hold no more than a docstring and names."""


@pytest.fixture(scope="module")
def on_the_way() -> list[str]:
    """The files that are loaded to make a stage, below the repository's root."""
    done = subprocess.run([sys.executable, "-c", ON_THE_WAY], capture_output=True, text=True, check=True)
    root = reuse.ROOT.resolve()
    return [str(Path(path).resolve().relative_to(root)) for path in json.loads(done.stdout)]


def test_every_module_on_the_way_is_in_the_key(on_the_way: list[str]) -> None:
    known = {str(path.relative_to(reuse.ROOT)) for path in reuse.code()}
    assert len(on_the_way) > 40
    assert set(on_the_way) - known <= {*ROOFS, "exporter/exchange.py"}


def test_a_changed_byte_in_any_of_them_changes_the_key(
    on_the_way: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("exporter", "plugins", "runtime"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(reuse.ROOT / name, tmp_path / name, ignore=ignored)
    monkeypatch.setattr(reuse, "ROOT", tmp_path)
    before = reuse.code_digest()
    for path in {*on_the_way, "plugins/rope.py", "plugins/qk_norm_rope/contract.py"} - set(ROOFS):
        whole = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(whole + b"\n")
        assert reuse.code_digest() != before, path
        (tmp_path / path).write_bytes(whole)
    for path in ("exporter/cli.py", "exporter/engines/builder.py", "runtime/cli.py", "runtime/jobs.py"):
        (tmp_path / path).write_bytes(b"")
    assert reuse.code_digest() == before, "what makes no stage is not in it"


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_input_gives_the_same_bytes_and_a_second_build_changes_nothing(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(checkpoint("dev-like"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    first = build(source, tmp_path / "a", precision="fp16")
    build(source, tmp_path / "b", precision="fp16")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert first.provenance.created is None

    def state() -> dict[str, tuple[int, int]]:
        whole = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in whole}

    before = state()
    build(source, tmp_path / "a", precision="fp16")
    assert state() == before

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    stamped = build(source, tmp_path / "a", precision="fp16")
    assert stamped.provenance.created == "2023-11-14T22:13:20+00:00"


def test_a_build_that_changes_nothing_needs_no_space(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(checkpoint("dev-like"))
    build(source, tmp_path / "a", stages=["conditioner"])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    build(source, tmp_path / "a", stages=["conditioner"])


def test_a_hub_cache_of_symlinks_is_linked_to_its_blobs(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from checkpoints import write_bfl

    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    blob = write_bfl(checkpoint("dev-like"), tmp_path / "flux.safetensors").rename(
        tmp_path / "blobs" / "0123"
    )
    (tmp_path / "snapshot" / "flux.safetensors").symlink_to("../blobs/0123")
    build(str(tmp_path / "snapshot" / "flux.safetensors"), tmp_path / "a", stages=["conditioner", "denoiser"])
    placed = tmp_path / "a" / "transformer" / "flux.safetensors"
    assert not placed.is_symlink()
    assert placed.read_bytes() == blob.read_bytes()
    assert placed.samefile(blob) or placed.stat().st_nlink == 1
