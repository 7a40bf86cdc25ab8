from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flux_trt.exporter.checkpoints.tensorfile import Writer, read_header
from flux_trt.runtime.errors import BuildError, CheckpointError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8]


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(3, 5), (7,), (), (2, 0, 3), (1, 1, 4), (6,)]
    return {
        f"t.{i}": (10 * torch.randn(shape)).to(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, DTYPES, strict=True))
    }


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def test_reads_what_safetensors_writes(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert set(header) == set(tensors)
    for name, tensor in tensors.items():
        assert same_bytes(header[name].read(), tensor)


def test_safetensors_reads_what_it_writes(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    with Writer(path, [(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    for name, tensor in load_file(path).items():
        assert same_bytes(tensor, tensors[name])
        assert writer.entries[name].read().shape == tensor.shape
    assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert writer.nbytes == path.stat().st_size
    assert min(info.offset for info in writer.entries.values()) % 64 == 0


def test_writes_rows_of_a_transposed_tensor_in_order(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).T
    with Writer(tmp_path / "a.safetensors", [("t", tensor.dtype, (4, 3))]) as writer:
        writer.write("t", tensor)
    assert torch.equal(load_file(tmp_path / "a.safetensors")["t"], tensor)


def test_refuses_tensors_out_of_order_and_left_out(tmp_path: Path) -> None:
    announced = [("a", torch.float32, (2,)), ("b", torch.float32, (2,))]
    with (
        pytest.raises(BuildError, match="expected a, got b"),
        Writer(tmp_path / "1.safetensors", announced) as writer,
    ):
        writer.write("b", torch.zeros(2))
    with (
        pytest.raises(BuildError, match="b was not written"),
        Writer(tmp_path / "2.safetensors", announced) as writer,
    ):
        writer.write("a", torch.zeros(2))


def header(**entry: object) -> bytes:
    text = json.dumps({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        b"\xff" * 16,
        header()[:-3],
        header() + b"1234567",
        header(data_offsets=[0, 4]) + b"12345678",
        header(data_offsets=[-8, 0]) + b"12345678",
        header(data_offsets=[8, 16]) + b"12345678",
        header(dtype="F12") + b"12345678",
        header(shape=[-2, -1]) + b"12345678",
        header(shape="two") + b"12345678",
        (2).to_bytes(8, "little") + b"[]",
        b"\x80\x02}q\x00." + b"pickle" * 10,
    ],
)
def test_refuses_broken_files_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match="not a whole safetensors file|is a pickle, which is not loaded"
    ) as fault:
        read_header(path)
    assert "\n" not in str(fault.value)


def test_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read .*gone"):
        read_header(tmp_path / "gone.safetensors")


def test_notices_a_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"t": torch.zeros(100)}, path)
    info = read_header(path)["t"]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="ends early"):
        info.read()


@given(st.binary(max_size=200))
def test_any_bytes_give_tensors_or_one_clear_error(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(data)
        try:
            read_header(path)
        except CheckpointError as fault:
            assert "\n" not in str(fault)
