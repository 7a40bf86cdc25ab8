"""Compile the kernel ahead of time for every GPU, without having one.

    python -m flux_trt.plugins.qk_norm_rope.compile [--out FOLDER]

Needs the Triton that constraints.txt names. Writes `kernels/`: per architecture a zip of binaries, and
manifest.json with how to launch them and the digest of the sources; a test fails when they are stale.
"""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from flux_trt.plugins.qk_norm_rope.binary import source_digest, variant
from flux_trt.plugins.qk_norm_rope.contract import DTYPES, FP8

CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
WIDTHS = (32, 64, 128, 256)
WARPS, HEADS = 4, 4
TILE, FP8_TILE = 1024, 2048
"""Elements of a program's tile, so that a thread reads (E4M3: writes) 16 bytes of each row at once."""
TRITON_NAMES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", FP8: "fp8e4nv"}
POINTERS = ("q_in", "k_in", "q_scale", "k_scale", "cos", "sin", "q_out", "k_out")
INTEGERS = ("tokens", "channels", "heads", "head_dim")
FLOATS = ("epsilon", "q_fp8_scale", "k_fp8_scale")
ALIGNED = (*POINTERS, "channels", "head_dim")
"""What Triton may take for multiples of 16 (bytes of a pointer, elements of a size); the contract says so."""


def variants(capability: str) -> list[tuple[str, str, int]]:
    """dtype of the input, dtype of the output and width of every binary for this GPU."""
    pairs = [(dtype, dtype) for dtype in DTYPES]
    if tuple(map(int, capability.split("."))) >= (8, 9):
        pairs += [(dtype, FP8) for dtype in ("float16", "bfloat16")]
    return [(dtype, out, width) for dtype, out in pairs for width in WIDTHS]


def compiled(capability: str, dtype: str, out: str, width: int) -> Any:
    """Triton's compiled kernel: `asm` with "ptx" and "cubin", and `metadata`."""
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # else a binary names the folder it was made in
    import triton
    from triton.backends.compiler import GPUTarget

    from flux_trt.plugins.qk_norm_rope.kernel import qk_norm_rope

    names = [*POINTERS, *INTEGERS, *FLOATS]
    tensor, result = f"*{TRITON_NAMES[dtype]}", f"*{TRITON_NAMES[out]}"
    types = [*[tensor] * 4, "*fp32", "*fp32", result, result, *["i32"] * 4, *["fp32"] * 3]
    constants = {"TOKENS": _tile(out) // width, "HEADS": HEADS, "WIDTH": width}
    source = triton.compiler.ASTSource(
        qk_norm_rope,
        dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr"),
        constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name in ALIGNED},
    )
    target = GPUTarget("cuda", int(capability.replace(".", "")), 32)
    return triton.compile(source, target=target, options={"num_warps": WARPS, "enable_fp_fusion": True})


def _tile(out: str) -> int:
    return FP8_TILE if out == FP8 else TILE


def main() -> None:
    """Compile all, and write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "kernels")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    targets: dict[str, Any] = {}
    tokens: dict[str, int] = {}
    for capability in CAPABILITIES:
        name, shared = f"sm_{capability.replace('.', '')}.zip", {}
        with zipfile.ZipFile(out / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for dtype, result, width in variants(capability):
                kernel = compiled(capability, dtype, result, width)
                label = variant(dtype, width, result == FP8)
                archive.writestr(zipfile.ZipInfo(f"{label}.cubin"), kernel.asm["cubin"], zipfile.ZIP_DEFLATED)
                shared[label], tokens[label] = kernel.metadata.shared, _tile(result) // width
        targets[capability] = {"file": name, "shared": shared}
        print(name, len(shared), "kernels", (out / name).stat().st_size, "bytes")
    import triton

    found = {
        "kernel": "qk_norm_rope",
        "source_sha256": source_digest(),
        "triton": triton.__version__,
        "launch": {
            "grid": "ceil(tokens / launch.tokens), ceil(heads / launch.heads), batch",
            "threads": 32 * WARPS,
            "heads": HEADS,
            "tokens": tokens,
            "parameters": [*POINTERS, *INTEGERS, *FLOATS, "null", "null"],
        },
        "targets": targets,
    }
    (out / "manifest.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
