"""What can be known to fail is refused before any work, with the way out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flux_trt.exporter.engines import cgroup
from flux_trt.runtime.bundle.engine import Recipe
from flux_trt.runtime.bundle.flavour import Flavour
from flux_trt.runtime.bundle.manifest import Precision
from flux_trt.runtime.errors import BuildError

Kind = tuple[Precision, Precision | None]
"""A stage's precision, and its base where it is quantised."""
LEAST: dict[Precision, tuple[float, str]] = {
    "bf16": (8.0, "--precision fp16"),
    "fp8": (8.9, "--precision bf16, fp16, or int8"),
    "w4a16": (8.0, "--precision w8a16 --base fp16"),
    "nvfp4": (10.0, "--precision fp8, int8 or w4a16"),
}
LEAST_BASE: dict[Precision, tuple[float, str]] = {"bf16": (8.0, "--base fp16")}
"""The compute capability that has a type, and what to take on an older one."""
PLAN = 1.05
"""Bytes of a plan for each byte of weights."""
MEMORY = 2.0
"""Bytes of RAM, beside the mapped weights, for each byte of weights. At full size: 1.2 (fp8 denoiser),
1.7 (fp8 T5), 2.0 (bf16 conditioner); benchmarks/results/full_size_engines.json."""
MEMORY_BASE = 1.5e9
SECONDS, SECONDS_BASE = 11e-9, 25.0
"""For each byte of weights, and for any engine, on two cores: the same measurement."""


@dataclass(frozen=True)
class Estimate:
    """What building an engine takes, about."""

    plan: float
    """Bytes on the disk."""
    memory: float
    """Bytes of RAM."""
    seconds: float

    @classmethod
    def of(cls, weights: int) -> Estimate:
        """From the bytes of a stage's weights."""
        return cls(PLAN * weights, MEMORY_BASE + MEMORY * weights, SECONDS_BASE + SECONDS * weights)


def refuse_targets(flavour: Flavour, capabilities: Sequence[str], kinds: Sequence[Kind]) -> None:
    """Check the targets against the flavour and the precisions.

    Args:
        flavour: of the engines.
        capabilities: such as ["8.9"].
        kinds: of the stages.

    Raises:
        BuildError: a target that the flavour does not build for, or that lacks a precision.
    """
    if not capabilities:
        raise BuildError(f"no GPU to build {flavour.name} engines for; say which with --sm, such as --sm 8.9")
    for sm in capabilities:
        if flavour.capabilities and sm not in flavour.capabilities:
            raise BuildError(
                f"{flavour.name} builds no engines for sm {sm}; "
                f"it builds for {', '.join(flavour.capabilities)}"
                + ("; use --backend tensorrt on such a GPU" if flavour.cross_builds else "")
            )
        for precision, base in kinds:
            least, way_out = LEAST.get(precision, (0.0, ""))
            if float(sm) < least:
                raise BuildError(f"{precision} needs sm {least} or newer, not {sm}; use {way_out}")
            if "fp32" in (base, precision) and float(sm) < flavour.float32:
                raise BuildError(
                    f"fp32 needs sm {flavour.float32} or newer in {flavour.name}, not {sm}, and text "
                    "encoders and the VAE stay in fp32 beside fp16; build other stages alone with --stages, "
                    "or paint with --backend onnxruntime"
                )
            least, way_out = LEAST_BASE.get(base, (0.0, "")) if base else (0.0, "")
            if float(sm) < least:
                raise BuildError(
                    f"{precision} with {base} around it needs sm {least} or newer, not {sm}; use {way_out}"
                )


def refuse_short(recipes: Sequence[tuple[Recipe, int]], folder: Path) -> None:
    """Check free disk and memory against an estimate.

    Args:
        recipes: the engines to build, each with its bytes of weights.
        folder: on the disk that takes the plans.

    Raises:
        BuildError: too little of either.
    """
    disk, free = sum(Estimate.of(size).plan for _, size in recipes), shutil.disk_usage(folder).free
    if disk > free:
        raise BuildError(
            f"the engines need about {disk / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free; "
            "build fewer with --stages, or into a bundle on another disk"
        )
    available = available_memory()
    for recipe, size in recipes:
        needed = Estimate.of(size).memory
        if available is not None and needed > available:
            raise BuildError(
                f"building {recipe.stage} in {recipe.precision} needs about {needed / 1e9:.1f} GB of memory "
                f"and {available / 1e9:.1f} GB are available; "
                f"use {smaller(recipe.precision)}, or --force to try"
            )


def smaller(precision: Precision) -> str:
    """What needs less memory than a stage in this precision."""
    more = "a machine with more memory"
    small = {"fp8": "w4a16", "int8": "w4a16", "w8a16": "w4a16", "w4a16": None, "nvfp4": None}.get(
        precision, "fp8"
    )
    return f"--precision {small}, or {more}" if small else more


def available_memory() -> int | None:
    """Bytes of RAM that can still be had, by the machine and by every control group that this process is in.

    None where the system does not tell.
    """
    known = [_available_on_machine(), *cgroup.available()]
    return min((each for each in known if each is not None), default=None)


def _available_on_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
