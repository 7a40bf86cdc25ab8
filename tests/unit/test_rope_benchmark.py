"""What benchmarks/rope.py says where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_refuses_in_one_line_without_a_gpu(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "rope.py", "--out", tmp_path],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 1
    assert child.stderr == "Error: no NVIDIA GPU that torch can use; run on one, or give --static\n"
    assert list(tmp_path.iterdir()) == []


def test_the_counts_claim_no_speed_and_are_of_the_binaries() -> None:
    from flux_trt.plugins.qk_norm_rope.binary import find

    found = json.loads((ROOT / "benchmarks" / "results" / "rope_static.json").read_text(encoding="utf-8"))
    assert "No speed was measured" in found["note"]
    tokens, heads, head_dim = 4608, 24, 128
    once = tokens * heads * head_dim * 2
    fused = found["bytes_per_call_1024x1024_16_bit"]["fused"]
    assert fused == 4 * once + 2 * head_dim * 2 + tokens * head_dim * 4
    assert len(found["rows"]) == 3 * 6 + 4
    for row in found["rows"]:
        dtype, *fp8, _ = row["kernel"].split("-")
        capability = tuple(map(int, row["capability"].split(".")))
        kernel = find(capability, dtype, head_dim, bool(fp8))
        assert (row["cubin_bytes"], row["shared_bytes"]) == (len(kernel.code), kernel.shared)
        assert row["spilled_bytes"] == 0
        per_head = row["ptx_accesses_per_head"]
        loads = 16 * kernel.threads * per_head["ld.global.v4.b32"]
        assert loads == 2 * kernel.tokens * head_dim * (4 if dtype == "float32" else 2), "q and k once"
