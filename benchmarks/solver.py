"""Distance to the exact picture against runs of the denoiser, for both solvers, on flux-nano.

    python benchmarks/solver.py [--prompts 128] [--exact 1000] [--out benchmarks/results] [--plot docs/gallery/solver.png]

The exact picture of a seed is that of very many Euler steps, so the reference favours no higher order. Both
solvers run the denoiser once a step, so runs are time. The checker's score stands beside the distance to show
why it cannot judge a solver: it prefers coarse solutions, and the exact pictures themselves score lowest.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from likeness import psnr
from machine import describe, write

from flux_trt.exporter.build import build
from flux_trt.runtime.pipeline import Pipeline

NANO = Path(__file__).parent.parent / "examples" / "flux-nano"
WEIGHTS = NANO / "transformer" / "diffusion_pytorch_model.safetensors"
RUNS = (4, 6, 8, 12, 16, 20, 28)
EXACT = 1000
SOLVERS = ("euler", "ab2")
SIZE, GUIDANCE, SEED, BATCH = (64, 64), 1.0, 0, 32
HELD_TO = (("euler", 28), ("ab2", 12))
"""The claim: half of the runs, and as near."""


def paint(
    pipeline: Pipeline, prompts: list[str], solver: str, steps: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Pictures uint8 [N, H, W, 3], last latents [N, tokens, channels], seconds; prompt k from seed k."""
    latents: dict[int, np.ndarray] = {}

    def keep(step: Any) -> None:
        if step.index == step.steps:
            latents[step.pictures.start] = step.latents.numpy().copy()

    started = time.perf_counter()
    images = pipeline.generate(
        prompts,
        size=SIZE,
        steps=steps,
        guidance=GUIDANCE,
        seed=SEED,
        batch=BATCH,
        solver=solver,
        on_step=keep,
    )
    took = time.perf_counter() - started
    return np.stack([np.asarray(each) for each in images]), np.concatenate(list(latents.values())), took


def decibels(found: np.ndarray, exact: np.ndarray) -> float:
    """Median over pictures of the latents' signal over their error."""
    error = ((found - exact) ** 2).mean(axis=(1, 2))
    return float(np.median(10 * np.log10((exact**2).mean(axis=(1, 2)) / error)))


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """Both curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(6.4, 4.0))
    for solver, label in (("euler", "euler"), ("ab2", "ab2, as many runs of the denoiser")):
        mine = [row for row in rows if row["solver"] == solver]
        runs, near = [row["runs"] for row in mine], [row["psnr_db_median"] for row in mine]
        panel.plot(runs, near, marker="o", label=label)
    panel.set_xscale("log")
    panel.set_xticks(RUNS, [str(each) for each in RUNS])
    panel.minorticks_off()
    panel.set_xlabel("runs of the denoiser")
    panel.set_ylabel("PSNR to the exact picture, dB")
    panel.set_title("flux-nano, median of pictures", fontsize=10)
    panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Paint with both solvers, and write the result file and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--exact", type=int, default=EXACT, help="steps of Euler that count as exact")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--plot", type=Path, default=NANO.parent.parent / "docs" / "gallery" / "solver.png")
    args = parser.parse_args()
    sys.path.insert(0, str(NANO))
    from nano.checker import check
    from nano.scene import test_prompts

    prompts = test_prompts(args.prompts)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        build(str(NANO), Path(folder) / "bundle", precision="fp32")
        with Pipeline.load(Path(folder) / "bundle", "onnxruntime", "cpu") as pipeline:
            exact, ends, _ = paint(pipeline, prompts, "euler", args.exact)
            right = [check(image, prompt).all_right for image, prompt in zip(exact, prompts, strict=True)]
            for solver in SOLVERS:
                for runs in RUNS:
                    found, latents, took = paint(pipeline, prompts, solver, runs)
                    near = psnr(found, exact)
                    good = [
                        check(image, prompt).all_right for image, prompt in zip(found, prompts, strict=True)
                    ]
                    pairs = list(zip(good, right, strict=True))
                    rows.append(
                        {
                            "solver": solver,
                            "runs": runs,
                            "psnr_db_median": round(float(np.median(near)), 2),
                            "psnr_db_p5": round(float(np.percentile(near, 5)), 2),
                            "latents_db_median": round(decibels(latents, ends), 2),
                            "checker_all_right": round(float(np.mean(good)), 4),
                            "lost_against_exact": sum(b and not a for a, b in pairs),
                            "won_against_exact": sum(a and not b for a, b in pairs),
                            "seconds": round(took, 2),
                        }
                    )
                    print(rows[-1], file=sys.stderr, flush=True)
    result = {
        **describe(),
        "checkpoint": {"name": NANO.name, "transformer_sha256": _digest(WEIGHTS)},
        "settings": {
            "prompts": args.prompts,
            "size": SIZE,
            "guidance": GUIDANCE,
            "seed": SEED,
            "batch": BATCH,
            "exact": f"euler, {args.exact} steps",
        },
        "exact_checker_all_right": round(float(np.mean(right)), 4),
        "note": "the checker's score prefers coarse solutions, so it cannot judge a solver",
        "held_to": [{"solver": solver, "runs": runs} for solver, runs in HELD_TO],
        "rows": rows,
    }
    plot(rows, args.plot)
    write(args.out / "solver.json", result)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    main()
