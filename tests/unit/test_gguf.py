"""GGUF files are read as the `gguf` package reads them, and hostile ones are refused."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from checkpoints import write_bfl
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from t5_gguf import llama_names

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.checkpoints.quantised.gguf import is_gguf, read_gguf
from flux_trt.exporter.checkpoints.tensorfile import Decoded, TensorInfo
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.runtime.errors import CheckpointError

QUANTISES = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4]
HALVES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
    Kind.IQ2_XXS: (0,),
    Kind.IQ3_S: (0,),
    Kind.IQ1_S: (0,),
}
"""Types that the package cannot write -> where their blocks have float16 scales."""


def write(
    path: Path, tensors: dict[str, tuple[np.ndarray, Kind]], arch: str = "flux", **said: object
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in said.items():
        key = key.replace("__", ".")
        writer.add_array(key, value) if isinstance(value, list) else writer.add_string(key, str(value))
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(kind: Kind, rows: int, columns: int) -> np.ndarray:
    """Random valid blocks: any bits, and finite scales."""
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(int(kind))
    found = random.integers(0, 256, (rows, columns // size, nbytes), dtype=np.uint8)
    for place in HALVES[kind]:
        scale = (random.random((rows, columns // size)) * 0.1).astype(np.float16)
        found[:, :, place : place + 2] = scale[..., None].view(np.uint8)
    return found.reshape(rows, -1)


@pytest.mark.parametrize("kind", [*QUANTISES, *HALVES], ids=lambda kind: kind.name)
def test_blocks_are_the_packages_numbers(tmp_path: Path, kind: Kind) -> None:
    columns = 3 * gguf.GGML_QUANT_SIZES[kind][0]
    weight = np.random.default_rng(0).normal(size=(19, columns)).astype(np.float32)
    codes = gguf.quants.quantize(weight, kind) if kind in QUANTISES else blocks(kind, 19, columns)
    bias = np.arange(5, dtype=np.float32)
    path = write(tmp_path / "a.gguf", {"bias": (bias, Kind.F32), "a.weight": (codes, kind)})
    found, said = read_gguf(path)
    assert said["general.architecture"] == "flux"
    value = found["a.weight"]
    assert isinstance(value, Decoded)
    assert (value.format, value.shape) == (f"GGUF {kind.name}", (19, columns))
    wanted = gguf.quants.dequantize(codes, kind)
    assert np.isfinite(wanted).all()
    assert torch.equal(value.read(), torch.from_numpy(wanted))
    assert torch.equal(found["bias"].read(), torch.from_numpy(bias))


def test_numbers_are_used_where_they_lie(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    bits = gguf.quants.quantize(weight, Kind.BF16)
    made = {
        "f32": (weight, Kind.F32),
        "f16": (weight.astype(np.float16), Kind.F16),
        "bf16": (bits, Kind.BF16),
    }
    found, _ = read_gguf(write(tmp_path / "a.gguf", made))
    for name, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
        info = found[name]
        assert isinstance(info, TensorInfo)
        assert (info.dtype, info.shape, info.offset % 32) == (dtype, (3, 5, 2), 0)
        assert torch.equal(info.read(), torch.from_numpy(weight).to(dtype))


def test_the_shape_that_a_tensor_had(tmp_path: Path) -> None:
    """ComfyUI-GGUF folds tensors whose rows are no blocks, and notes their shape."""
    weight = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
    codes = gguf.quants.quantize(weight, Kind.Q8_0)
    said = {"comfy__gguf__orig_shape__a": [2, 3, 4, 8], "tokens": ["a", "b"] * 40, "ids": list(range(99))}
    found, told = read_gguf(write(tmp_path / "a.gguf", {"a": (codes, Kind.Q8_0)}, **said))
    assert torch.equal(
        found["a"].read(), torch.from_numpy(gguf.quants.dequantize(codes, Kind.Q8_0)).view(2, 3, 4, 8)
    )
    assert told["tokens"] is told["ids"] is None
    bad = write(tmp_path / "b.gguf", {"a": (codes, Kind.Q8_0)}, comfy__gguf__orig_shape__a=[2, 3, 4])
    with pytest.raises(CheckpointError, match=r"a of dims \[32, 6\] is said to be \[2, 3, 4\]"):
        read_gguf(bad)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer(checkpoint: Callable[[str], Path], tmp_path: Path, prefix: str) -> None:
    """As city96's FLUX.1 files: matrices in blocks, all else in F32 and BF16."""
    tensors, wanted = load_file(write_bfl(checkpoint("dev-like"), tmp_path / "a.safetensors")), {}
    made = {}
    for name, tensor in tensors.items():
        kind = Kind.Q8_0 if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 else Kind.F32
        codes = gguf.quants.quantize(tensor.float().numpy(), kind)
        made[prefix + name], wanted[name] = (
            (codes, kind),
            torch.from_numpy(gguf.quants.dequantize(codes, kind)),
        )
    path = write(tmp_path / "a.gguf", made)
    assert is_gguf(path)
    for stage in make_stages(recognise(open_checkpoint(str(path))), "bf16", ["conditioner", "denoiser"]):
        for recipe in stage.recipes.values():
            assert torch.equal(
                recipe.load(stage.tensors), recipe.make(*(wanted[name] for name in recipe.names))
            )


def test_t5(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """As city96's t5-v1_1-xxl-encoder files: llama.cpp's names."""
    (source,) = (checkpoint("dev-like") / "text_encoder_2").glob("*.safetensors")
    tensors = load_file(source)
    made = {name: (data, Kind.F32) for name, data in llama_names(tensors).items()}
    made["dec.blk.0.attn_q.weight"] = made["output.weight"] = (np.ones((2, 2), np.float32), Kind.F32)
    found, said = read_gguf(write(tmp_path / "t5.gguf", made, arch="t5encoder"))
    assert said["general.architecture"] == "t5encoder"
    assert {"decoder.blk.0.attn_q.weight", "lm_head.weight"} == set(found) - set(tensors)
    for name in set(found) & set(tensors):
        assert torch.equal(found[name].read(), tensors[name].float())
    opened = open_checkpoint(str(checkpoint("dev-like")), t5=tmp_path / "t5.gguf")
    assert set(opened.parts["t5"].tensors) == set(found)


def header(
    *tensors: tuple[str, tuple[int, ...], int, int], values: bytes = b"", count: int = 0, **said: int
) -> bytes:
    head = (
        b"GGUF"
        + struct.pack("<IQQ", said.get("version", 3), said.get("tensors", len(tensors)), count)
        + values
    )
    for name, dims, code, offset in tensors:
        head += struct.pack(
            f"<Q{len(name)}sI{len(dims)}QIQ", len(name), name.encode(), len(dims), *dims, code, offset
        )
    return head + bytes(-len(head) % 32) + bytes(256)


def value(key: str, kind: int, data: bytes) -> bytes:
    return struct.pack(f"<Q{len(key)}sI", len(key), key.encode(), kind) + data


WHOLE = header(("a", (32, 2), 8, 0))
HOSTILE = {
    "no GGUF at its beginning": b"GGUE" + WHOLE[4:],
    "version 1": header(version=1),
    "big-endian": header(version=3 << 24),
    "ends early": WHOLE[:40],
    "a header without an end": header(tensors=1 << 60) + struct.pack("<Q", 1 << 60) * 9,
    r"ends at byte \d+ and the file at": WHOLE[:-220],
    "rows of": header(("a", (33, 2), 8, 0)),
    "is said to be": header(("a", (32, 0), 8, 0)),
    "lies between places": header(("a", (32, 2), 8, 8)),
    "listed twice": header(("a", (32, 1), 8, 0), ("a", (32, 1), 8, 0)),
    "has 9 dims": header(("a", (1,) * 9, 0, 0)),
    "a value of type 77": header(values=value("k", 77, b""), count=1),
    "an array of type 9": header(values=value("k", 9, struct.pack("<IQ", 9, 1)), count=1),
    "an alignment of 0": header(values=value("general.alignment", 4, bytes(4)), count=1),
    "is of type 999, which": header(("a", (32, 2), 999, 0)),
    "a is Q8_1, which": header(("a", (32, 2), 9, 0)),
}


@pytest.mark.parametrize(("line", "data"), HOSTILE.items(), ids=HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, line: str, data: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=line) as told:
        read_gguf(path)
    assert "\n" not in str(told.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.integers(0, len(WHOLE)))
def test_no_change_of_a_byte_is_a_traceback(tmp_path: Path, place: int, byte: int, length: int) -> None:
    data = bytearray(WHOLE)
    data[place] = byte
    path = tmp_path / "a.gguf"
    path.write_bytes(data[:length])
    try:
        for tensor in read_gguf(path)[0].values():
            tensor.read()
    except CheckpointError:
        pass


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(WHOLE)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"gguf is not installed; install flux_trt .* flux_trt\[gguf\]"):
        open_checkpoint(str(path))
