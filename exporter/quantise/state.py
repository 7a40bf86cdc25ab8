"""The state of long work, in one safetensors file that is always whole, so that the work can go on later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flux_trt.exporter.written import write_whole

FACTS = "facts"


def save_state(path: Path, facts: str, tensors: Mapping[str, Tensor]) -> None:
    """Replace the state at `path`; `facts` says of what work it is.

    Raises:
        BuildError: the file cannot be written.
    """
    write_whole(path, save(dict(tensors), {FACTS: _digest(facts)}))


def load_state(path: Path, facts: str) -> dict[str, Tensor]:
    """The state at `path`; nothing when there is none, or when it is of other work."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get(FACTS) != _digest(facts):
                return {}
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def _digest(facts: str) -> str:
    return hashlib.sha256(facts.encode()).hexdigest()
