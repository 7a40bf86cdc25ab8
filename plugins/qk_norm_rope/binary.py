"""The compiled kernels that come with the package: which one fits a GPU and a node."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from flux_trt.plugins.qk_norm_rope.contract import FP8

HERE = files("flux_trt.plugins.qk_norm_rope")
SOURCES = ("kernel.py", "compile.py")


@dataclass(frozen=True)
class Kernel:
    """A kernel for one architecture, and how to launch it."""

    name: str
    code: bytes
    tokens: int
    """Of one program."""
    heads: int
    """Of one program."""
    threads: int
    shared: int
    """Bytes of dynamic shared memory."""

    def grid(self, batch: int, tokens: int, heads: int) -> tuple[int, int, int]:
        """The number of programs along x, y and z."""
        return -(-tokens // self.tokens), -(-heads // self.heads), batch


def variant(dtype: str, head_dim: int, fp8: bool) -> str:
    """The name of the binary for inputs of `dtype`: head dims are rounded up to a power of two."""
    width = max(32, 1 << (head_dim - 1).bit_length())
    return f"{dtype}-{FP8}-{width}" if fp8 else f"{dtype}-{width}"


@cache
def manifest() -> dict[str, Any]:
    """What `compile` wrote beside the binaries."""
    found: dict[str, Any] = json.loads((HERE / "kernels" / "manifest.json").read_text(encoding="utf-8"))
    return found


def source_digest() -> str:
    """SHA-256 of the files that the binaries depend on, whatever their line ends."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((HERE / name).read_text(encoding="utf-8").encode())
    return digest.hexdigest()


@cache
def find(capability: tuple[int, int], dtype: str, head_dim: int, fp8: bool = False) -> Kernel:
    """The kernel for a GPU.

    Up to compute capability 8.9 a binary also runs on later GPUs of its generation. From 9.0 on it runs on
    its own only, as Triton compiles for the architecture-specific targets, such as sm_90a.

    Args:
        capability: of the GPU, (major, minor).
        dtype: of qkv: float16, bfloat16 or float32.
        head_dim: 32 to 256.
        fp8: whether to write E4M3.

    Raises:
        ValueError: there is none.
    """
    known, wanted = manifest(), variant(dtype, head_dim, fp8)
    targets = {tuple(map(int, sm.split("."))): entry for sm, entry in known["targets"].items()}
    fitting = [sm for sm in targets if sm == capability or (sm[0] == capability[0] == 8 and sm <= capability)]
    fitting = [sm for sm in fitting if wanted in targets[sm]["shared"]]
    if not fitting:
        have = ", ".join(f"{major}.{minor}" for major, minor in targets)
        raise ValueError(
            f"QKNormRope has no kernel {wanted} for compute capability {capability[0]}.{capability[1]}, "
            f"only for {have}{' (FP8 from 8.9 on)' if fp8 else ''}; build with --rope native"
        )
    entry = targets[max(fitting)]
    packed = (HERE / "kernels" / entry["file"]).read_bytes()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        code = archive.read(f"{wanted}.cubin")
    rule = known["launch"]
    return Kernel(
        name=known["kernel"],
        code=code,
        tokens=rule["tokens"][wanted],
        heads=rule["heads"],
        threads=rule["threads"],
        shared=entry["shared"][wanted],
    )
