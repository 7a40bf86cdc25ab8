"""Whether a calibration is large enough to be trusted."""

from __future__ import annotations

from flux_trt.exporter.quantise.calibration import Settings

PROMPTS, STEPS, AREA = 4, 1 / 4, 1 / 4
"""The fewest prompts, and the least share of the usual steps and of the usual pixels.

On flux-nano (benchmarks/results/calibrations.json, PSNR of 8 pictures to fp32's) the usual 31 prompts, 12
steps and 64x64 give 52.3 dB; 4 prompts 48.5, 1 prompt 40.3: prompts are what counts. With 31 prompts a single
step costs 0.4 dB and a quarter of the pixels nothing, but one prompt, one step and 16x16 together leave 22.3
dB: the bounds of steps and pixels are caution for models whose activations vary more with them. `--size
256x256 --steps 4` with eight prompts, which docs/fp8.md proposes for a CPU, is enough.
"""


def too_small(found: Settings, usual: Settings) -> str | None:
    """What is far too small of a calibration's settings, beside the usual ones; None when nothing is."""
    few = []
    if len(found.prompts) < PROMPTS:
        few.append(f"{_count(len(found.prompts), 'prompt')} (usual: {len(usual.prompts)})")
    if found.steps < usual.steps * STEPS:
        few.append(f"{_count(found.steps, 'step')} (usual: {usual.steps})")
    if found.width * found.height < usual.width * usual.height * AREA:
        few.append(f"{found.width}x{found.height} pixels (usual: {usual.width}x{usual.height})")
    return ", ".join(few) or None


def warning(found: Settings, usual: Settings) -> str | None:
    """A line about a calibration that is too small, or None."""
    few = too_small(found, usual)
    return few and (
        f"warning: the calibration is small: {few}; pictures in fp8 may be bad; calibrate with "
        "prompts like those that will be painted, more steps, a larger size"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
