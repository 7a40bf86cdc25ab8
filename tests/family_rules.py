"""What a bundle of each family says of its positions, noise, schedule and reference pictures."""

from __future__ import annotations

from flux_trt.runtime.bundle.rules import (
    Constant,
    Empirical,
    Exponential,
    Line,
    Noise,
    Positions,
    Preferred,
    ReferencePositions,
    Shrunk,
)
from flux_trt.runtime.bundle.schema1 import KONTEXT

FLUX1 = Positions(
    axes=[16, 56, 56],
    theta=10000.0,
    text_axis=None,
    grid_axes=[1, 2],
    grid_scale=1.0,
    reference=ReferencePositions(axis=0, start=1, stride=1),
)
FLUX2 = Positions(
    axes=[32] * 4,
    theta=2000.0,
    text_axis=3,
    grid_axes=[1, 2],
    grid_scale=1.0,
    reference=ReferencePositions(axis=0, start=10, stride=10),
)
FLUX3 = FLUX2.model_copy(
    update={
        "theta": 10000.0,
        "grid_scale": 0.5,
        "reference": ReferencePositions(axis=3, start=-1, stride=-1),
    }
)
FLUX1_NOISE = Noise(channels=16, cell=2, order="chw", round=None)
FLUX2_NOISE = Noise(channels=128, cell=1, order="chw", round=None)
TOKENS_NOISE = Noise(channels=128, cell=1, order="tokens", round="bf16")
DEV = Exponential(tokens=[256, 4096], mu=[0.5, 1.15], round=None)
SCHNELL = Constant(shift=1.0, round=None)
FLUX2_SCHEDULE = Empirical(
    few=Line(steps=10, slope=8.73809524e-05, offset=1.89833333),
    many=Line(steps=200, slope=0.00016927, offset=0.45666666),
    large=4300,
    round=None,
)
FLUX3_SCHEDULE = Constant(shift=6.93, round=None)
PREFERRED = Preferred(sizes=KONTEXT, area=1024 * 1024)
SHRUNK = Shrunk(area=1024 * 1024, least=64, aspect=8)
