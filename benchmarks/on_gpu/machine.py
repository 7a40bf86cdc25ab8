"""The card, as nvidia-smi tells it, and which TensorRT is made for it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

QUERY = ("name", "compute_cap", "driver_version", "memory.total", "power.limit")
RTX = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities for which TensorRT-RTX builds all stages, as runtime/bundle/flavour.py has them."""


@dataclass(frozen=True)
class Card:
    """The first GPU."""

    name: str
    capability: str
    driver: str
    memory_gb: float
    power_limit_w: str

    @property
    def flavour(self) -> str:
        """Which TensorRT to install."""
        return "tensorrt-rtx" if self.capability in RTX else "tensorrt"

    @property
    def slug(self) -> str:
        """For names of files: "nvidia-geforce-rtx-4090"."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def look() -> Card | str:
    """The card, or in a line why there is none."""
    if not shutil.which("nvidia-smi"):
        return "nvidia-smi is not there, so no NVIDIA driver is installed"
    ask = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError) as fault:
        return f"nvidia-smi could not be run ({fault})"
    if done.returncode or not done.stdout.strip():
        return f"nvidia-smi found no GPU ({(done.stdout + done.stderr).strip().splitlines()[0:1]})"
    parts = [part.strip() for part in done.stdout.splitlines()[0].split(",")]
    if len(parts) != len(QUERY) or not re.fullmatch(r"\d+\.\d+", parts[1]):
        return f"nvidia-smi says {done.stdout.splitlines()[0]!r}, which is not understood"
    memory = float(parts[3]) / 1024 if re.fullmatch(r"[\d.]+", parts[3]) else 0.0
    return Card(parts[0], parts[1], parts[2], round(memory, 1), parts[4])
