"""Whether what was painted in this time is right: PSNR to a reference, and a checker's verdict."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flux_trt.bench.errors import BenchError
from flux_trt.bench.job import Pictures
from flux_trt.bench.schema import Quality

Check = Callable[[Pictures, str], bool]
EQUAL_DB = 150.0  # of pictures without any difference, so that the figure stays a number


def psnr(found: Pictures, expected: Pictures) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture in dB: [N, H, W, 3] -> [N]."""
    error = np.mean((found.astype(np.float64) - expected) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(255**2 / error), EQUAL_DB)


def checker(path: Path) -> Check:
    """The checker in a Python file: its `check(picture, prompt)` gives a report with `all_right`.

    The file is imported as a module of the package that its folder is.

    Raises:
        BenchError: it cannot be imported, or has no such function.
    """
    root = path.resolve().parent
    sys.path.insert(0, str(root.parent))
    try:
        check = importlib.import_module(f"{root.name}.{path.stem}").check
    except (ImportError, AttributeError) as fault:
        raise BenchError(f"{path} is no checker ({fault}); give a file with check(picture, prompt)") from None
    return lambda picture, prompt: bool(check(picture, prompt).all_right)


def judge(
    pictures: Sequence[Pictures],
    prompts: Sequence[Sequence[str]],
    reference: tuple[str, Sequence[Pictures]] | None,
    check: Check | None,
) -> Quality:
    """The quality of batches of pictures.

    Args:
        pictures: batch by batch.
        prompts: of each batch.
        reference: whose pictures of the same prompts and seeds to compare with, and these.
        check: whether a picture shows its prompt.

    Raises:
        BenchError: the checker cannot read a prompt.
    """
    apart = np.array([])
    if reference:
        apart = np.concatenate([psnr(a, b) for a, b in zip(pictures, reference[1], strict=True)])
    score = None
    if check:
        pairs = [
            pair
            for batch, said in zip(pictures, prompts, strict=True)
            for pair in zip(batch, said, strict=True)
        ]
        try:
            score = float(np.mean([check(picture, prompt) for picture, prompt in pairs]))
        except (ValueError, KeyError) as fault:
            raise BenchError(f"the checker cannot judge these prompts ({fault}); give others") from None
    return Quality(
        pictures=sum(map(len, pictures)),
        reference=reference[0] if reference else None,
        psnr_db_median=round(float(np.median(apart)), 2) if reference else None,
        psnr_db_min=round(float(apart.min()), 2) if reference else None,
        score=None if score is None else round(score, 4),
    )
