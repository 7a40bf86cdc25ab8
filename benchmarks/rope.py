"""The fused RoPE kernel against what else computes queries and keys: bytes per second, and times.

    python benchmarks/rope.py [--out benchmarks/results]            on an NVIDIA GPU, with torch for CUDA
    python benchmarks/rope.py --static [--out benchmarks/results]   anywhere: what the compiled code says

On a GPU the binaries that the plugin launches run beside torch eager, torch.compile of the whole op, and
torch.compile of the norm and of the rotation apart ("separate"). All are checked against eager in float32
before they are timed. Speed is given as the bytes that the op must move (queries and keys once in and out,
the tables once) over the time, relative to the speed at which this GPU copies a large buffer.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe, write

from flux_trt.plugins.qk_norm_rope.binary import variant
from flux_trt.plugins.qk_norm_rope.compile import CAPABILITIES, compiled
from flux_trt.plugins.qk_norm_rope.contract import DTYPES, FP8, Attributes

HEADS, HEAD_DIM, EPSILON, ITEM = 24, 128, 1e-6, 2
SIZES = {"1024x1024": 4096 + 512, "1536x1536": 9216 + 512, "2048x2048": 16384 + 512}
"""Tokens of a FLUX.1 picture and its text."""
CHANNELS = {"double": 3 * HEADS * HEAD_DIM, "single": 7 * HEADS * HEAD_DIM}
"""What the projection of a block leaves: q, k, v; and in single blocks the MLP's input too."""
GOALS = {"share_of_copy": 0.85, "times_faster_than_separate": 2.5}
ROUNDS, WARM_UP, BUFFERS = 50, 10, 4


def moved(tokens: int, item: int = ITEM) -> int:
    """Bytes that the op must move: q and k in and out, the norms' weights and the tables in."""
    return 4 * tokens * HEADS * HEAD_DIM * item + 2 * HEAD_DIM * item + tokens * HEAD_DIM * 4


def static() -> dict[str, Any]:
    """Registers, instructions and accesses of the compiled code for FLUX.1's head dim."""
    rows = []
    for capability in CAPABILITIES:
        for dtype, out in [*((dtype, dtype) for dtype in DTYPES), ("bfloat16", FP8)]:
            if out == FP8 and tuple(map(int, capability.split("."))) < (8, 9):
                continue
            kernel = compiled(capability, dtype, out, HEAD_DIM)
            rows.append(
                {
                    "capability": capability,
                    "kernel": variant(dtype, HEAD_DIM, out == FP8),
                    "cubin_bytes": len(kernel.asm["cubin"]),
                    "shared_bytes": kernel.metadata.shared,
                    **_sass(kernel.asm["cubin"]),
                    "ptx_accesses": _accesses(kernel.asm["ptx"]),
                    "ptx_accesses_per_head": _accesses(_loop(kernel.asm["ptx"])),
                }
            )
    fused = moved(SIZES["1024x1024"])
    tables = SIZES["1024x1024"] * HEAD_DIM * 4
    return {
        "note": "No speed was measured, for want of a GPU: counts of the compiled code, bytes by arithmetic.",
        "bytes_per_call_1024x1024_16_bit": {
            "fused": fused,
            "norm_then_rotation_as_two_kernels": 2 * (fused - tables) + tables,
            "norm_then_rotation_then_transpose_as_three_kernels": 3 * (fused - tables) + tables,
        },
        "rows": rows,
    }


def _accesses(ptx: str) -> dict[str, int]:
    """Instructions that reach memory, by their kind and width."""
    return dict(Counter(sorted(re.findall(r"\b((?:ld|st)\.(?:global|shared|local)\.[\w.]+)", ptx))))


def _loop(ptx: str) -> str:
    """The body of the loop over heads: from a label to the branch back to it."""
    for branch in re.finditer(r"bra(?:\.uni)?\s+(\$L__BB\d+_\d+);", ptx):
        start = ptx.find(f"{branch[1]}:")
        if 0 <= start < branch.start():
            return ptx[start : branch.start()]
    raise SystemExit("the compiled kernel has no loop; benchmarks/rope.py must learn its new form")


def _sass(cubin: bytes) -> dict[str, Any]:
    """Registers, stack and instructions as the disassembler tells, which Triton brings along."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    instructions = re.findall(r"/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code)
    kinds = Counter(name.split(".")[0] for name in instructions if name != "NOP")
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": found["REG"],
        "spilled_bytes": found["STACK"] + found["LOCAL"],
        "sass_instructions": sum(kinds.values()),
        "sass_kinds": dict(kinds.most_common(12)),
    }


def measured() -> dict[str, Any]:
    """Times of all ways, on this GPU."""
    import torch
    import torch.nn.functional as F

    from flux_trt.exporter.families.rope import qk_norm_rope, rotate
    from flux_trt.plugins.qk_norm_rope.launch import prepare

    def heads_of(qkv: torch.Tensor) -> torch.Tensor:
        return qkv[..., : 2 * HEADS * HEAD_DIM].unflatten(-1, (2, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)

    def norm(qkv: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        x = heads_of(qkv).float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
        return (x * scales[:, None, None, None]).to(qkv.dtype)

    def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return rotate(x.float(), cos, sin).to(x.dtype)

    whole = torch.compile(qk_norm_rope, dynamic=False)
    norm_compiled, turn_compiled = (torch.compile(each, dynamic=False) for each in (norm, turn))
    copied = _copy_bandwidth(torch)
    rows = []
    for dtype in (torch.float16, torch.bfloat16):
        for size, tokens in SIZES.items():
            for block, channels in CHANNELS.items():
                torch.manual_seed(0)
                inputs = [
                    torch.randn(1, tokens, channels, device="cuda", dtype=dtype) for _ in range(BUFFERS)
                ]
                scales = torch.rand(2, HEAD_DIM, device="cuda", dtype=dtype) + 0.5
                angles = torch.rand(tokens, HEAD_DIM // 2, device="cuda") * 6
                cos, sin = angles.cos(), angles.sin()
                start = prepare(
                    Attributes(HEADS, EPSILON), (1, tokens, channels), HEAD_DIM, str(dtype).partition(".")[2]
                )
                outputs = torch.empty(2, 1, HEADS, tokens, HEAD_DIM, device="cuda", dtype=dtype)
                constants = [x.data_ptr() for x in (scales[0], scales[1], cos, sin)]
                targets = [outputs[0].data_ptr(), outputs[1].data_ptr()]

                def fused(x: torch.Tensor) -> torch.Tensor:
                    stream = torch.cuda.current_stream().cuda_stream
                    start.run([x.data_ptr(), *constants], targets, stream)  # noqa: B023
                    return outputs  # noqa: B023

                ways: dict[str, Callable[[torch.Tensor], Any]] = {
                    "fused": fused,
                    "eager": lambda x: qk_norm_rope((x,), *scales, cos, sin, HEADS, EPSILON),  # noqa: B023
                    "compiled": lambda x: whole((x,), *scales, cos, sin, HEADS, EPSILON),  # noqa: B023
                    "separate": lambda x: turn_compiled(norm_compiled(x, scales), cos, sin),  # noqa: B023
                }
                exact = torch.stack(
                    qk_norm_rope((inputs[0].float(),), *scales.float(), cos, sin, HEADS, EPSILON)
                )
                row: dict[str, Any] = {"dtype": str(dtype), "size": size, "tokens": tokens, "block": block}
                for name, way in ways.items():
                    found = way(inputs[0])
                    found = torch.stack(found) if isinstance(found, tuple) else found
                    error = F.l1_loss(found.float(), exact).item()
                    if error > 0.01:
                        raise SystemExit(f"{name} is wrong by {error} on average; nothing is timed")
                    seconds = _seconds(torch, way, inputs)
                    speed = moved(tokens) / seconds
                    row[name] = {
                        "microseconds": round(1e6 * seconds, 2),
                        "share_of_copy": round(speed / copied, 4),
                        "mean_error": error,
                    }
                row["times_faster_than_separate"] = round(
                    row["separate"]["microseconds"] / row["fused"]["microseconds"], 3
                )
                rows.append(row)
    return {"copy_gb_per_s": round(copied / 1e9, 1), "goals": GOALS, "rows": rows}


def _seconds(torch: Any, way: Callable[[Any], Any], inputs: list[Any]) -> float:
    """Median of ROUNDS rounds; every round takes another buffer, so that none is left in the cache."""
    for i in range(WARM_UP):
        way(inputs[i % BUFFERS])
    times = []
    for i in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # A long kernel first, so that the events measure the GPU and not the launching of the work.
        torch.cuda._sleep(2_000_000)
        begin.record()
        way(inputs[i % BUFFERS])
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _copy_bandwidth(torch: Any) -> float:
    """Bytes read and written per second by a copy of 1 GiB."""
    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(torch, lambda _: target.copy_(source), [None] * BUFFERS)


def main() -> int:
    """Count or measure, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--static", action="store_true", help="count, measure nothing; needs no GPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    import triton

    found = describe()
    found["triton"] = triton.__version__
    if options.static:
        write(options.out / "rope_static.json", {**found, **static()})
        return 0
    import torch

    if not torch.cuda.is_available():
        print("Error: no NVIDIA GPU that torch can use; run on one, or give --static", file=sys.stderr)
        return 1
    found["hardware"] = {**dict(found["hardware"]), "gpu": torch.cuda.get_device_name()}  # type: ignore[call-overload]
    write(options.out / "rope.json", {**found, **measured()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
