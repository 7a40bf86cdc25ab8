"""LoRAs as they are asked for: a file, how strongly it is wanted, and what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

from flux_trt.runtime.errors import CheckpointError, RequestError
from flux_trt.runtime.lora.file import asked
from flux_trt.runtime.lora.term import Asked, strength_of

LoraLike: TypeAlias = "str | PathLike[str] | tuple[str | PathLike[str], float] | Mapping[str, Any] | Chosen"
"""FILE, FILE:STRENGTH, (file, strength), or the record of one in a picture's parameters."""

BLOCK = 1 << 20


@dataclass(frozen=True)
class Chosen:
    """A LoRA that is to be painted with."""

    path: Path
    strength: float
    sha256: str
    """Of the file."""
    tensors: str
    """SHA-256 of what is behind the file's header: Civitai's AutoV3, which no edit of metadata changes."""

    @property
    def asked(self) -> Asked:
        """As the reader takes it."""
        return Asked(self.path, self.strength)

    @property
    def record(self) -> dict[str, Any]:
        """For a picture's parameters."""
        return {
            "sha256": self.sha256,
            "tensors": self.tensors,
            "path": str(self.path),
            "strength": self.strength,
        }


def chosen(given: Any) -> tuple[Chosen, ...] | None:
    """The LoRAs of a request, each file once with all its strengths; None where nothing is said of any.

    Raises:
        RequestError: no file there, no strength, or another file than the one that a record names.
    """
    if given is None:
        return None
    one = isinstance(given, (str, PathLike, Mapping, Chosen)) or (
        isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], (int, float))
    )
    several = [given] if one else given
    if not isinstance(several, Sequence) or isinstance(several, bytes):
        raise RequestError(f"lora is {type(given).__name__}; give FILE, FILE:STRENGTH, or a list of them")
    found = [_one(each) for each in several]
    return tuple(each for each in found if each.strength != 0)


def _one(given: Any) -> Chosen:
    if isinstance(given, Chosen):
        return given
    try:
        if isinstance(given, Mapping):
            return _recorded(given)
        if isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(given[0], (str, PathLike)):
            wanted = Asked(asked(fspath(given[0]), whole=True).path, strength_of(given[1], given[0]))
        elif isinstance(given, (str, PathLike)):
            wanted = asked(fspath(given))
        else:
            raise RequestError(f"lora has {type(given).__name__} in it; give FILE or FILE:STRENGTH")
    except CheckpointError as fault:
        raise RequestError(str(fault)) from None
    return Chosen(wanted.path, wanted.strength, *digests(wanted.path))


def _recorded(record: Mapping[str, Any]) -> Chosen:
    """The file that a picture was painted with, where it lay then."""
    path, sha256 = record.get("path"), record.get("sha256")
    if not isinstance(path, str) or not isinstance(sha256, str):
        raise RequestError("a LoRA of the picture's record has no path or no SHA-256; give it with --lora")
    strength = strength_of(record.get("strength", 1.0), path)
    if not _is_there(path):
        raise RequestError(f"the LoRA {path} is not there, and the picture was painted with it; give --lora")
    found = digests(Path(path))
    if found[0] != sha256:
        raise RequestError(
            f"{path} is not the LoRA that the picture was painted with (its SHA-256 differs); "
            "give that one with --lora"
        )
    return Chosen(Path(path), strength, *found)


def _is_there(path: str) -> bool:
    """Whether a path, which is whatever a file says, is that of a file."""
    try:
        return path.endswith(".safetensors") and Path(path).is_file()
    except (OSError, ValueError):  # longer than the disk's names may be, or with a NUL
        return False


def digests(path: Path) -> tuple[str, str]:
    """SHA-256 of a safetensors file, and of its tensors alone.

    Source of the second: kohya-ss/sd-scripts, library/train_util.py, `addnet_hash_safetensors`.

    Raises:
        RequestError: it cannot be read.
    """
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    try:
        with path.open("rb") as file:
            start = file.read(8)
            whole.update(start)
            header = int.from_bytes(start, "little")
            whole.update(file.read(min(header, path.stat().st_size)))
            while block := file.read(BLOCK):
                whole.update(block)
                tensors.update(block)
            return whole.hexdigest(), tensors.hexdigest()
    except OSError as fault:
        raise RequestError(f"cannot read the LoRA {path}: {fault.strerror}; check the path") from None
