"""The kernel of `flux::QKNormRope`: interpreted against the oracle, and the binaries that come with it."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flux_trt.plugins.qk_norm_rope import binary, launch
from flux_trt.plugins.qk_norm_rope.contract import DTYPES, FP8, LARGEST, SMALLEST, STEP, Attributes

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "plugins" / "qk_norm_rope" / "kernels"
CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is only there on x86-64 Linux"
)


@triton
def test_the_kernel_equals_the_oracle_under_tritons_interpreter() -> None:
    """In a process of its own: the interpreter has to be chosen before Triton is imported."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/interpreted/rope_kernel.py",
    ]
    paths = os.pathsep.join(map(str, (ROOT / "tests", os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    child = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert child.returncode == 0, child.stdout[-4000:]
    assert re.search(r"^\d\d+ passed", child.stdout, re.MULTILINE)


def test_the_binaries_are_those_of_the_sources() -> None:
    stale = "stale; run: python -m flux_trt.plugins.qk_norm_rope.compile"
    assert binary.manifest()["source_sha256"] == binary.source_digest(), stale
    pinned = re.search(r"^triton==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert binary.manifest()["triton"] == pinned[1], stale


def test_a_changed_source_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in binary.SOURCES:
        source = (binary.HERE / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(source.replace("1.0", "1.5").replace("1024", "512"), encoding="utf-8")
    monkeypatch.setattr(binary, "HERE", tmp_path)
    assert binary.source_digest() != binary.manifest()["source_sha256"]


def test_every_gpu_has_a_binary_for_every_dtype_and_head_dim() -> None:
    names = set()
    for capability in CAPABILITIES:
        for dtype in DTYPES:
            for head_dim in range(SMALLEST, LARGEST + 1, STEP):
                kernel = binary.find(capability, dtype, head_dim)
                assert kernel.code[:4] == b"\x7fELF"
                assert b"qk_norm_rope" in kernel.code
                assert kernel.tokens * max(32, 1 << (head_dim - 1).bit_length()) == 1024
                names.add((capability, hashlib.sha256(kernel.code).hexdigest()))
        for dtype in DTYPES[:2]:
            if capability >= (8, 9):
                assert (
                    binary.find(capability, dtype, 128, fp8=True).code
                    != binary.find(capability, dtype, 128).code
                )
    assert len(names) == len(CAPABILITIES) * len(DTYPES) * 4
    assert {f"{major}.{minor}" for major, minor in CAPABILITIES} == set(binary.manifest()["targets"])


def test_the_binaries_are_small_and_name_no_folder() -> None:
    files = list(KERNELS.iterdir())
    assert len(files) == len(CAPABILITIES) + 1
    assert sum(file.stat().st_size for file in files) < 1_500_000
    for capability in CAPABILITIES:
        assert b".py" not in binary.find(capability, "float16", 128).code


def test_gpus_of_the_same_generation_share_what_they_can() -> None:
    assert binary.find((8, 7), "float16", 128) == binary.find((8, 6), "float16", 128)
    for capability in ((7, 5), (9, 1), (10, 3), (12, 1)):
        with pytest.raises(ValueError, match=r"for compute capability \d+\.\d, only for 8\.0.*--rope native"):
            binary.find(capability, "float16", 128)
    with pytest.raises(ValueError, match=r"FP8 from 8\.9 on"):
        binary.find((8, 6), "bfloat16", 128, fp8=True)


@pytest.fixture(scope="module")
def recompiled() -> dict:
    """One binary of each kind made anew in a process of its own, with an empty cache."""
    code = """
import hashlib, json, sys, tempfile, os
with tempfile.TemporaryDirectory() as cache:
    os.environ["TRITON_CACHE_DIR"] = cache
    from flux_trt.plugins.qk_norm_rope import compile
    found = {}
    for capability, dtype, out, width in json.loads(sys.argv[1]):
        kernel = compile.compiled(capability, dtype, out, width)
        digest = hashlib.sha256(kernel.asm["cubin"]).hexdigest()
        found[f"{capability} {dtype} {out}"] = [digest, kernel.asm["ptx"], kernel.metadata.shared]
import triton
print(json.dumps({"triton": triton.__version__, "kernels": found}))
"""
    wanted = [("8.0", "float16", "float16", 128), ("9.0", "bfloat16", "bfloat16", 128)]
    wanted += [("8.9", "bfloat16", FP8, 128), ("12.0", "float32", "float32", 64)]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(wanted)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout)


@triton
def test_compiling_again_gives_the_same_bytes(recompiled: dict) -> None:
    if recompiled["triton"] != binary.manifest()["triton"]:
        pytest.skip(f"another Triton: {recompiled['triton']}")
    for name, (digest, _, shared) in recompiled["kernels"].items():
        capability, dtype, out = name.split()
        head_dim = 64 if capability == "12.0" else 128
        kernel = binary.find(tuple(map(int, capability.split("."))), dtype, head_dim, out == FP8)
        assert hashlib.sha256(kernel.code).hexdigest() == digest, name
        assert kernel.shared == shared


@triton
def test_every_access_to_memory_is_16_bytes_wide(recompiled: dict) -> None:
    for name, (_, ptx, shared) in recompiled["kernels"].items():
        accesses = re.findall(r"\b(?:ld|st)\.global\.\S+", ptx)
        assert {access.split(".", 2)[2] for access in accesses} == {"v4.b32"}, name
        assert len(accesses) >= 8
        if shared == 0:
            assert "bar.sync" not in ptx
    assert [shared for _, _, shared in recompiled["kernels"].values()][:2] == [0, 0], (
        "16 bits need no exchange"
    )


@triton
def test_the_launch_passes_what_the_kernel_takes(recompiled: dict) -> None:
    kinds = {"u64": ctypes.c_void_p, "u32": ctypes.c_int32, "f32": ctypes.c_float}
    for _, ptx, _ in recompiled["kernels"].values():
        entry = ptx[ptx.index(".entry qk_norm_rope") : ptx.index(")", ptx.index(".entry qk_norm_rope"))]
        assert tuple(kinds[kind] for kind in re.findall(r"\.param \.(\w+)", entry)) == launch.PARAMETERS
    assert len(binary.manifest()["launch"]["parameters"]) == len(launch.PARAMETERS)


class Driver:
    """`cuda.bindings.driver` as far as the launch needs it: it notes what it is told."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )

    def __init__(self, capability: tuple[int, int], fault: int = 0) -> None:
        self.capability, self.fault = capability, fault
        self.loaded: list[bytes] = []
        self.launched: list[tuple] = []

    def cuCtxGetDevice(self):  # noqa: N802
        return 0, 0

    def cuCtxGetCurrent(self):  # noqa: N802
        return 0, id(self)

    def cuDeviceGetAttribute(self, attribute, device):  # noqa: N802
        return 0, self.capability[attribute]

    def cuModuleLoadData(self, code):  # noqa: N802
        self.loaded.append(code)
        return 0, "module"

    def cuModuleGetFunction(self, module, name):  # noqa: N802
        return 0, (module, name)

    def cuLaunchKernel(self, *arguments):  # noqa: N802
        self.launched.append(arguments)
        return (SimpleNamespace(name="CUDA_ERROR_NOT_SUPPORTED") if self.fault else 0,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch):
    bindings = pytest.importorskip("cuda.bindings", reason="needs cuda-python")

    def use(capability: tuple[int, int], fault: int = 0) -> Driver:
        found = Driver(capability, fault)
        monkeypatch.setattr(bindings, "driver", found, raising=False)
        return found

    return use


def test_a_launch_covers_every_token_and_head(driver) -> None:
    fake = driver((9, 0))
    ready = launch.prepare(Attributes(24), (2, 4609, 9216), 128, "bfloat16")
    ready.run([16, 32, 48, 64, 80], [96, 112], stream=7)
    assert fake.loaded == [binary.find((9, 0), "bfloat16", 128).code]
    function, *numbers, stream, (values, types), extra = fake.launched[0]
    assert function == ("module", b"qk_norm_rope")
    assert numbers == [577, 6, 2, 128, 1, 1, 0]
    assert (stream, extra) == (7, 0)
    first_key = 16 + 24 * 128 * 2
    assert values == (16, first_key, 32, 48, 64, 80, 96, 112, 4609, 9216, 24, 128, 1e-6, 1.0, 1.0, 0, 0)
    assert len(types) == len(values)


def test_keys_that_are_apart_are_read_where_they_are(driver) -> None:
    fake = driver((9, 0))
    ready = launch.prepare(Attributes(24), (2, 4609, 3072), 128, "bfloat16", inputs=6)
    ready.run([16, 24, 32, 48, 64, 80], [96, 112], stream=7)
    assert fake.launched[0][-2][0][:11] == (16, 24, 32, 48, 64, 80, 96, 112, 4609, 3072, 24)


def test_a_kernel_is_loaded_once_for_a_context(driver) -> None:
    fake = driver((8, 0))
    for tokens in (5, 6):
        launch.prepare(Attributes(2), (1, tokens, 256), 64, "float16")
    assert len(fake.loaded) == 1
    launch.prepare(Attributes(2), (1, 5, 256), 32, "float16")
    assert len(fake.loaded) == 2
    assert fake.launched == [], "loading must not start anything"


def test_fp8_has_a_kernel_and_scales_of_its_own(driver) -> None:
    fake = driver((8, 9))
    launch.prepare(Attributes(1, fp8_scales=(0.5, 0.25)), (1, 20, 384), 128, "float16").run(
        [0] * 5, [0] * 2, 0
    )
    assert fake.loaded == [binary.find((8, 9), "float16", 128, fp8=True).code]
    assert fake.launched[0][1] == 2
    assert fake.launched[0][-2][0][-4:] == (0.5, 0.25, 0, 0)


def test_a_refusal_of_cuda_is_told(driver) -> None:
    driver((8, 9), fault=1)
    ready = launch.prepare(Attributes(1), (1, 20, 384), 128, "float16")
    with pytest.raises(RuntimeError, match="cuLaunchKernel failed: CUDA_ERROR_NOT_SUPPORTED"):
        ready.run([0] * 5, [0] * 2, 0)


def test_the_grid_covers_exactly() -> None:
    kernel = binary.find((9, 0), "float16", 128)
    rng = np.random.default_rng(0)
    for batch, tokens, heads in rng.integers(1, 5000, (50, 3)):
        x, y, z = kernel.grid(int(batch), int(tokens), int(heads))
        assert (x - 1) * kernel.tokens < tokens <= x * kernel.tokens
        assert (y - 1) * kernel.heads < heads <= y * kernel.heads
        assert z == batch
