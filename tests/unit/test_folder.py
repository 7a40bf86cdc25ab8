"""Where bundles are put, and what others have left there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flux_trt.exporter import folder, place
from flux_trt.exporter.exchange import exchange
from flux_trt.exporter.folder import lock_of, written_aside
from flux_trt.exporter.lock import alone
from flux_trt.runtime.errors import BuildError


@pytest.fixture
def out(tiny: Path, tmp_path: Path) -> Path:
    """A bundle that may be changed."""
    return shutil.copytree(tiny, tmp_path / "out")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(out: Path, tell: Callable[[str], None] = lambda line: None) -> None:
    """Replace a bundle by a folder with the file `new`."""
    with written_aside(out, tell) as aside:
        (aside.folder / "new").write_text("new")


@pytest.mark.parametrize("atomic", [True, False])
def test_a_bundle_takes_the_place_of_another(
    out: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not atomic:
        monkeypatch.setattr(folder, "exchange", lambda one, other: False)
    put(out)
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_two_names_are_swapped_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")


def test_a_bundle_whose_place_cannot_be_taken_stays(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = names(out), Path.rename

    def fails(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(folder, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(BuildError, match="cannot write"):
        put(out)
    assert names(out) == before
    assert names(out.parent) == ["out"]


def test_what_a_kill_between_the_renames_left_is_put_back(out: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.old-abcdefgh").mkdir()
    out.rename(tmp_path / ".out.old-abcdefgh" / "out")
    (tmp_path / ".out.partial-abcdefgh").mkdir()
    said: list[str] = []
    with pytest.raises(ZeroDivisionError), written_aside(out, said.append):
        raise ZeroDivisionError
    assert (out / "bundle.json").is_file()
    assert names(tmp_path) == ["out"]
    assert "put back" in said[0]


def test_only_the_rests_of_this_name_are_removed(out: Path, tmp_path: Path) -> None:
    kept = [
        ".out.old-x.partial-abcdefgh",
        ".other.partial-abcdefgh",
        ".out.partial-mine",
        "out.partial-abcdefgh",
    ]
    for name in (*kept, ".out.partial-abcd_123", ".out.old-abcdefgh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    put(out)
    assert names(tmp_path) == sorted([*kept, "out"])


def test_a_killed_build_is_cleared_away_by_the_next(out: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom flux_trt.exporter.folder import written_aside\n"
        "with written_aside(pathlib.Path(sys.argv[1])) as aside:\n"
        "    (aside.folder / 'half').touch()\n    print('at work', flush=True)\n    sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(BuildError, match="another build is at work in .*out; wait for it to end"):
        put(out)
    assert len(list(tmp_path.glob(".out.partial-*"))) == 1
    child.kill()
    child.communicate()
    put(out)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_disk_without_locks_is_said_and_work_goes_on(
    out: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    living = out.parent / ".out.partial-abcdefgh"
    living.mkdir()
    said: list[str] = []
    put(out, said.append)
    assert len(said) == 1
    assert "cannot be locked" in said[0]
    assert living.exists(), "nobody knows whether it is at work"
    assert (out / "new").exists()


def test_the_lock_is_one_and_is_gone_afterwards(out: Path) -> None:
    with alone(lock_of(out), out) as held:
        assert held
        with pytest.raises(BuildError, match="another build is at work"):
            put(out)
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "tokenizers/my.json", "engines/notes.txt", "lora/a.bin"])
def test_foreign_files_are_refused_by_name_and_stay(out: Path, name: str) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("years of work")
    with pytest.raises(BuildError, match=f"holds {name}, which no build has made"):
        put(out)
    assert (out / name).read_text() == "years of work"


@pytest.mark.parametrize("name", [".DS_Store", "engines/clip-0123456789abcdef/engine.plan", "engines/.lock"])
def test_what_builds_and_systems_leave_is_not_foreign(out: Path, name: str) -> None:
    (out / name).parent.mkdir(exist_ok=True, parents=True)
    (out / name).touch()
    put(out)


def test_a_bundle_that_cannot_be_read_is_not_replaced(out: Path) -> None:
    (out / "bundle.json").write_text("{")
    with pytest.raises(BuildError, match="exists and cannot be read .*; remove the folder"):
        put(out)


def test_a_mount_point_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = tmp_path / "a disk"
    point.mkdir()
    info = tmp_path / "mountinfo"
    shown = str(point).replace(" ", "\\040")
    info.write_text(f"36 35 98:0 /mnt {shown} rw,noatime - ext4 /dev/root rw\n")
    monkeypatch.setattr(place, "MOUNTS", info)
    with pytest.raises(BuildError, match="a disk is a mount point.*; give a folder in it"):
        put(point)
    put(point / "bundle")
    assert names(point) == ["bundle"]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="is not a name in UTF-8"):
        put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
