"""What every results file says of where and how it was made."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flux_trt.runtime.backends.cpus import features

PACKAGES = ("flux_trt", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino", "numpy")
QUERY = ("name", "driver_version", "power.limit")


def describe() -> dict[str, Any]:
    """Hardware, versions, command line and date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        "hardware": {
            "cpu": _cpu(),
            "cpu_features": None if (found := features()) is None else list(found),
            "cores": os.cpu_count(),
            "memory_gb": _memory_gb(),
            **gpu(),
        },
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def command(words: list[str]) -> str:
    """The command line without places of this machine: of an absolute path only the name is kept."""
    name = Path(words[0]).name
    called = ["python", f"benchmarks/{name}"] if name.endswith(".py") else [name]
    return shlex.join([*called, *map(_without_place, words[1:])])


def gpu() -> dict[str, Any]:
    """The first GPU's name, driver and power limit in watts, as nvidia-smi tells; None without one."""
    ask = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=30).stdout
        name, driver, limit = (part.strip() for part in found.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return {"gpu": None, "driver": None, "power_limit_w": None}
    watts = float(limit) if limit.replace(".", "", 1).isdecimal() else None
    return {"gpu": name, "driver": driver, "power_limit_w": watts}


def _without_place(word: str) -> str:
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write(path: Path, found: Mapping[str, object]) -> None:
    """Write a results file and show it."""
    text = json.dumps(found, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)
