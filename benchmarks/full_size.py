"""The exporter at FLUX.1's full size: 11.9 B parameters, from a BFL-named bf16 checkpoint.

    python benchmarks/full_size.py [--out benchmarks/results]

The checkpoint is a sparse file: its header is FLUX.1-dev's, its 23.8 GB of tensors are holes on the disk.
What is measured (time, peak memory, bytes on disk) does not depend on the tensors' values.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from full_size_sparse import Shapes, built, write_sparse
from machine import describe, write

NAME = "flux1-dev.safetensors"


def transformer() -> Shapes:
    """Names and shapes of FLUX.1-dev's transformer, under Black Forest Labs' names."""
    import torch

    from flux_trt.exporter.families.flux1.model import Conditioner, Denoiser
    from flux_trt.exporter.families.flux1.params import FLUX_DEV

    with torch.device("meta"):
        modules = Conditioner(FLUX_DEV), Denoiser(FLUX_DEV)
        parameters = {name: each for module in modules for name, each in module.named_parameters()}
    return {name: tuple(each.shape) for name, each in sorted(parameters.items())}


def measure(folder: Path) -> dict[str, Any]:
    """Build conditioner and denoiser in a child process."""
    path, bundle = folder / NAME, folder / "bundle"
    # In a child: a process's peak memory is at least that of the one it was started from.
    made = subprocess.run([sys.executable, __file__, "--sparse", path], capture_output=True, check=True)
    found = built(bundle, [str(path), "--stages", "conditioner,denoiser"])
    return {
        "parameters": int(made.stdout),
        **found,
        "graph_seconds_total": round(sum(found["graph_seconds"].values()), 1),
        "checkpoint_gb": round(path.stat().st_size / 1e9, 2),
        "weights_linked": (bundle / "transformer" / NAME).stat().st_nlink > 1,
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sparse", type=Path, help="only write the sparse checkpoint, here")
    args = parser.parse_args()
    if args.sparse:
        print(write_sparse(args.sparse, transformer()))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    found["targets"] = {"graph_seconds_total": 90, "peak_rss_gb": 1.5}
    write(args.out / "full_size.json", {**describe(), **found})


if __name__ == "__main__":
    main()
