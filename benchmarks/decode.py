"""Quantised checkpoints at FLUX.1's full size, 11.9 B parameters: what decoding them takes.

    python benchmarks/decode.py [--out benchmarks/results]

The denoiser's bf16 bundle is built from a scaled fp8 file and from a GGUF one in Q8_0. Both are sparse, as in
`full_size.py`: their headers are whole and their tensors holes on the disk. The weights that are written are
not; the folder for them needs 20 GB. Peak memory is of the whole command, tracing included.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from machine import describe, write

Shapes = dict[str, tuple[int, ...]]


def shapes() -> Shapes:
    """FLUX.1-dev's tensors by BFL's names."""
    import torch

    from flux_trt.exporter.families.flux1.model import Conditioner, Denoiser
    from flux_trt.exporter.families.flux1.params import FLUX_DEV

    with torch.device("meta"):
        modules = (Conditioner(FLUX_DEV), Denoiser(FLUX_DEV))
    return {name: tuple(value.shape) for module in modules for name, value in module.named_parameters()}


def scaled_fp8(path: Path) -> None:
    """As flux1-dev-kontext_fp8_scaled: matrices in E4M3 with a scale each, all else in bf16."""
    entries: list[tuple[str, str, tuple[int, ...], int]] = [("scaled_fp8", "F8_E4M3", (2,), 1)]
    for name, shape in sorted(shapes().items()):
        matrix = len(shape) == 2
        entries.append((name, *(("F8_E4M3", shape, 1) if matrix else ("BF16", shape, 2))))
        if matrix:
            entries.append((name.removesuffix("weight") + "scale_weight", "F32", (), 4))
    header, end = {}, 0
    for name, dtype, shape, width in entries:
        start, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def gguf(path: Path) -> None:
    """As city96's flux1-dev-Q8_0: matrices in blocks of 32, all else in F32."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quant_shape_to_byte_shape

    writer, end = GGUFWriter(path, "flux"), 0
    for name, shape in sorted(shapes().items()):
        kind = GGMLQuantizationType.Q8_0 if len(shape) == 2 else GGMLQuantizationType.F32
        stored = quant_shape_to_byte_shape(shape, kind) if len(shape) == 2 else shape
        dtype = np.dtype(np.uint8 if len(shape) == 2 else np.float32)
        nbytes = math.prod(stored) * dtype.itemsize
        writer.add_tensor_info(name, stored, dtype, nbytes, raw_dtype=kind)
        end += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + end)


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "scaled fp8": ("flux1-dev-fp8-scaled.safetensors", scaled_fp8),
    "GGUF Q8_0": ("flux1-dev-Q8_0.gguf", gguf),
}


def measure(name: str, folder: Path) -> dict[str, float]:
    """Build the denoiser from a sparse file, each in a child of its own: a peak begins at its parent's."""
    file, bundle, log = folder / FORMATS[name][0], folder / "bundle", folder / "build.log"
    subprocess.run([sys.executable, __file__, "--sparse", file, "--format", name], check=True)
    command = [sys.executable, "-m", "flux_trt.exporter.cli", "build", str(file), "--out", str(bundle)]
    command += ["--precision", "bf16", "--stages", "denoiser"]
    started = time.perf_counter()
    with log.open("w") as told:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        _, status, used = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"the build failed: {log.read_text()[-500:]}")
    graph = re.search(r"^denoiser: bf16,.* in ([\d.]+) s$", log.read_text(), re.M)
    assert graph is not None
    return {
        "wall_seconds": round(time.perf_counter() - started, 1),
        "denoiser_seconds": float(graph[1]),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_gb": round(used.ru_maxrss * 1024 / 1e9, 3),
        "checkpoint_gb": round(file.stat().st_size / 1e9, 2),
        "written_gb": round((bundle / "denoiser.safetensors").stat().st_size / 1e9, 2),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sparse", type=Path, help="only write a sparse checkpoint, here")
    parser.add_argument("--format", choices=list(FORMATS), default="scaled fp8", help="of that checkpoint")
    args = parser.parse_args()
    if args.sparse:
        FORMATS[args.format][1](args.sparse)
        return
    found = {}
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, Path(folder))
    write(args.out / "decode.json", {**describe(), "formats": found})


if __name__ == "__main__":
    main()
