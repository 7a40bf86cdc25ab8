"""Files on full disks and under limits: each is whole, or it is refused and nothing of it is left."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flux_trt.exporter.written import Written, cannot_write, link_or_copy, write_file, write_whole
from flux_trt.runtime.errors import BuildError

LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from flux_trt.runtime.errors import FluxTrtError
from pathlib import Path
try:
{work}
except FluxTrtError as fault:
    print(fault); sys.exit(1)
"""
KINDS = {
    "weights": (
        "    from flux_trt.exporter.folder import written_aside\n"
        "    from flux_trt.exporter.checkpoints.tensorfile import Writer\n"
        "    import torch\n"
        "    with written_aside(out) as aside:\n"
        "        with Writer(aside.folder / 't5.safetensors', [('a', torch.float32, (9000,))]) as writer:\n"
        "            writer.write('a', torch.ones(9000))\n"
    ),
    "graph": (
        "    from flux_trt.exporter.folder import written_aside\n"
        "    from flux_trt.exporter.written import write_file\n"
        "    with written_aside(out) as aside:\n"
        "        write_file(aside.folder / 't5.safetensors', bytes(36000))\n"
    ),
    "glue": (
        "    from flux_trt.exporter.folder import written_aside\n"
        "    from flux_trt.exporter.graphs.glue import write_glue\n"
        "    with written_aside(out) as aside:\n"
        "        write_glue(aside.folder, 64)\n"
    ),
    "state": (
        "    from flux_trt.exporter.quantise.state import save_state\n"
        "    import torch\n"
        "    save_state(out, 'facts', {'a': torch.ones(9000)})\n"
    ),
    "calibration": (
        "    from flux_trt.exporter.written import write_whole\n    write_whole(out, bytes(36000))\n"
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_of_file_sizes_is_told_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    work = f"    out = Path({str(tmp_path / 'out')!r})\n{KINDS[kind]}"
    code = LIMIT.format(limit=200 if kind == "glue" else 20000, work=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert f"cannot write {tmp_path / 'out'}" in done.stdout
    assert "(File too large); raise the limit of file sizes (ulimit -f)" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this system lets nobody mount; the limit of file sizes above shows the same")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", [3 << 20, (1 << 20) + 1])
def test_a_full_disk_is_told_and_leaves_what_was_there(small: Path, size: int) -> None:
    write_whole(small / "state", b"old")
    with pytest.raises(BuildError, match=r"cannot write .*state \(No space left on device\); free some"):
        write_whole(small / "state", bytes(size))
    assert [path.name for path in small.iterdir()] == ["state"]
    assert (small / "state").read_bytes() == b"old"


def test_a_bundle_that_does_not_fit_leaves_the_old_one(
    small: Path, tiny: Path, checkpoint: Callable[[str], Path]
) -> None:
    from flux_trt.exporter.build import build

    with pytest.raises(BuildError, match="No space left on device|are free"):
        build(str(checkpoint("dev-like")), small / "bundle", stages=["clip", "conditioner"], link=False)
    assert list(small.iterdir()) == []


def test_a_disk_that_has_less_than_was_written(tmp_path: Path) -> None:
    file = Written(tmp_path / "a")
    file.write(b"hello")
    file._file.flush()
    os.truncate(tmp_path / "a", 2)
    with pytest.raises(OSError, match="5 bytes were written and 2 are there"):
        file.close()


def test_the_record_is_that_of_the_bytes(tmp_path: Path) -> None:
    import hashlib

    record = write_file(tmp_path / "a", b"hello")
    assert (record.bytes, record.sha256) == (5, hashlib.sha256(b"hello").hexdigest())


def test_what_killed_writers_left_is_removed_and_living_ones_keep_theirs(tmp_path: Path) -> None:
    for name in (".state.abcdefgh", ".other.abcdefgh"):
        (tmp_path / name).mkdir()
    (tmp_path / ".state.abcdefgh" / "state").write_bytes(b"half")
    code = (
        "import sys, pathlib\nfrom flux_trt.exporter.lock import try_lock\n"
        "folder = pathlib.Path(sys.argv[1]); folder.mkdir()\n"
        "with try_lock(folder):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    alive = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".state.12345678")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert alive.stdout is not None
    alive.stdout.readline()
    write_whole(tmp_path / "state", b"whole")
    found = sorted(path.name for path in tmp_path.iterdir())
    alive.communicate()
    assert found == [".other.abcdefgh", ".state.12345678", "state"]


def test_a_copy_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    (tmp_path / "a").write_bytes(b"hello")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    assert (tmp_path / "c").read_bytes() == b"hello"
    assert not (tmp_path / "c").samefile(tmp_path / "a")


def test_the_advice_is_that_of_the_fault() -> None:
    said = {code: str(cannot_write(Path("x"), OSError(code, "why"))) for code in (errno.EROFS, errno.EIO)}
    assert json.dumps(said[errno.EROFS]) == '"cannot write x (why); choose another place"'
    assert said[errno.EIO].endswith("check the disk")
