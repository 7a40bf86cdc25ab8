"""The mean of two trained transformers, weight by weight: each has forgotten something that the other knows.

    python -m nano.average BEFORE AFTER --share 0.6

BEFORE and AFTER are checkpoints of which the second was trained on from the first; `--share` is AFTER's. The
mean takes the place of AFTER's transformer. Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot
models", arXiv 2109.01903, equation 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"


def average(before: Path, after: Path, share: float) -> dict[str, torch.Tensor]:
    """(1 - share) * before + share * after, computed in f32, in the types of `after`."""
    old, new = (load_file(each / WEIGHTS) for each in (before, after))
    return {name: torch.lerp(old[name].float(), new[name].float(), share).to(new[name].dtype) for name in new}


def main() -> None:
    """Read two, write one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--share", type=float, default=0.5)
    options = parser.parse_args()
    mean = average(options.before, options.after, options.share)
    aside = options.after / WEIGHTS.with_suffix(".new")
    save_file(mean, aside, metadata={"format": "pt"})
    aside.replace(options.after / WEIGHTS)


if __name__ == "__main__":
    main()
