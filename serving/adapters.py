"""LoRAs that clients may choose: the files of one folder, by their names; no path comes in or goes out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import FluxTrtError, RequestError
from flux_trt.runtime.lora import factors
from flux_trt.runtime.lora.chosen import Chosen, digests
from flux_trt.runtime.lora.term import strength_of
from flux_trt.serving.errors import ApiError

KIND = ".safetensors"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}")
NAMES = ("id", "name", "lora_name", "lora_nickname", "adapter")
STRENGTHS = ("strength", "scale", "weight", "multiplier", "lora_scale")
IDLE = ("int_id", "lora_int_id")
"""What vLLM-Omni's clients send of an adapter and what means nothing here."""
MOST = 8  # of one picture

Wanted = tuple[tuple[str, float], ...]
"""Ids and strengths."""


@dataclass(frozen=True)
class Adapter:
    """A file of the folder, as it was when the server started."""

    id: str
    file: Chosen
    """At strength 1; records name it, and not where it lies."""
    created: int
    """Seconds since 1970."""
    _seen: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> Adapter:
        """Of a file.

        Raises:
            RequestError: it cannot be read, or its name cannot be an id.
        """
        if not ID.fullmatch(path.stem):
            raise RequestError(
                f"{path} cannot be chosen by its name; rename it to letters, digits, spaces and . _ -"
            )
        file = Chosen(path, 1.0, *digests(path), called=path.name)
        return cls(path.stem, file, int(path.stat().st_mtime), _state(path))

    def expect_same(self) -> None:
        """The file is what it was.

        Raises:
            RequestError: it has changed, or is gone.
        """
        try:
            same = _state(self.file.path) == self._seen
        except OSError:
            same = False
        if not same:
            raise RequestError(f"the LoRA {self.id} has changed since the server started; start it anew")


class Adapters:
    """Those that one model takes."""

    def __init__(self, adapters: Sequence[Adapter] = ()) -> None:
        """By id."""
        self._by_id = {each.id: each for each in adapters}
        self._by_path = {each.file.path: each for each in adapters}

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._by_id.values())

    def __contains__(self, name: str) -> bool:
        return name in self._by_id

    def __getitem__(self, name: str) -> Adapter:
        return self._by_id[name]

    def choose(self, wanted: Wanted, model: str) -> tuple[Chosen, ...]:
        """The files of ids.

        Raises:
            ApiError: 404 for an id that is not there, 400 for one that is said twice.
        """
        if len({name for name, _ in wanted}) < len(wanted):
            raise ApiError(400, "an adapter is named twice; name it once", param="lora", code="invalid_value")
        for name, _ in wanted:
            if name not in self:
                there = f"there are {', '.join(self._by_id)}" if self._by_id else "it takes none"
                raise ApiError(
                    404,
                    f"there is no adapter {name!r:.100} for {model}: {there}; see /v1/models",
                    param="lora",
                    code="adapter_not_found",
                )
        return tuple(
            replace(self[name].file, strength=strength) for name, strength in wanted if strength != 0
        )

    def expect_same(self, chosen: Sequence[Chosen]) -> None:
        """Their files are what they were. Errors are those of `Adapter.expect_same`."""
        for each in chosen:
            self._by_path[each.path].expect_same()


def opened(folder: Path, bundles: Mapping[str, Bundle]) -> tuple[dict[str, Adapters], list[str]]:
    """Look at all files of a folder: every one must fit a bundle.

    Args:
        folder: with files.
        bundles: by the models' names.

    Returns:
        What each model takes, and the names of what is no LoRA file.

    Raises:
        FluxTrtError: no folder, a file that is damaged, foreign or fits none, or no bundle with branches.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as fault:
        raise RequestError(f"cannot read --lora-dir {folder}: {fault.strerror}; check the path") from None
    taking = {name: each for name, each in bundles.items() if each.manifest.adapters is not None}
    if not taking:
        raise RequestError(
            f"--lora-dir {folder}: none of the bundles takes a LoRA at run time; build one with "
            "flux-export build --lora-rank RANK"
        )
    files = [path for path in paths if path.suffix == KIND and not path.is_dir()]
    found: dict[str, list[Adapter]] = {name: [] for name in bundles}
    for adapter in map(Adapter.of, files):
        faults: list[FluxTrtError] = []
        for name, bundle in taking.items():
            try:
                factors.read(bundle, [adapter.file])
                found[name].append(adapter)
            except FluxTrtError as fault:
                faults.append(fault)
        if len(faults) == len(taking):
            raise faults[0]
    rest = [path.name for path in paths if path not in files]
    return {name: Adapters(some) for name, some in found.items()}, rest


def wanted(given: Any) -> Wanted:
    """Ids and strengths of what a client has sent: "ID", "ID:STRENGTH", an object, or a list of these.

    Raises:
        ValueError: saying what is wrong.
    """
    if isinstance(given, str) and given[:1] in ("[", "{"):
        given = json.loads(given)
    several = given if isinstance(given, (list, tuple)) else [given]
    if len(several) > MOST:
        raise ValueError(f"at most {MOST} adapters make a picture; name fewer")
    return tuple(map(_one, several))


def _one(given: Any) -> tuple[str, float]:
    if isinstance(given, str):
        name, sign, strength = given.rpartition(":")
        return _checked(*((name, strength) if sign else (given, 1.0)))
    if isinstance(given, (list, tuple)) and len(given) == 2:  # as it was read before
        return _checked(*given)
    if not isinstance(given, dict):
        raise ValueError("an adapter is ID, ID:STRENGTH, or an object of id and strength")
    for key in given:
        if "path" in str(key):
            raise ValueError(f"{key:.40} is not possible: adapters are those of /v1/models, by id")
        if key not in (*NAMES, *STRENGTHS, *IDLE):
            raise ValueError(f"unknown {key!r:.40}; an adapter has id and strength")
    names = [given[key] for key in NAMES if key in given]
    strengths = [given[key] for key in STRENGTHS if key in given] or [1.0]
    if len(names) != 1 or len(strengths) != 1:
        raise ValueError("an adapter has one id and one strength")
    return _checked(names[0], strengths[0])


def _checked(name: Any, strength: Any) -> tuple[str, float]:
    if not isinstance(name, str) or "/" in name or "\\" in name:
        raise ValueError("an adapter is named by its id; /v1/models lists them")
    try:
        number = float(strength) if isinstance(strength, str) else strength
        return name, strength_of(number, name[:100])
    except (ValueError, FluxTrtError):
        raise ValueError(
            f"{strength!r:.40} is no strength of {name:.100}; give a number such as 0.8"
        ) from None


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
