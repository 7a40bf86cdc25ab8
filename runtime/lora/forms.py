"""Whose names a LoRA file has: what stands before a module's name, and whether dots became underscores.

Names with underscores cannot be split again, so the tables are made from the modules' own names.

Sources: diffusers' loaders/lora_conversion_utils.py, ComfyUI's comfy/lora.py and lora_convert.py,
kohya-ss/sd-scripts networks/lora_flux.py, OneTrainer, LyCORIS, XLabs-AI/x-flux, BFL's src/flux/util.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import ValidationError

from flux_trt.runtime.bundle.record import Record
from flux_trt.runtime.errors import BundleError
from flux_trt.runtime.lora.term import Place

Prefixes = Mapping[str, Sequence[tuple[str, str, str]]]
"""Part -> (what stands before the names, what stands for their dots, whose form that is)."""
USUAL = {each.name: each.default for each in fields(Place)}
Tables = Mapping[str, Mapping[str, Place]]
"""Part -> dotted name of a module, whoever's -> where its update goes."""


@dataclass(frozen=True)
class Found:
    """Where a module of a file belongs."""

    place: Place
    prefix: str
    form: str


class Stored(Record):
    """Modules as they lie in a bundle."""

    prefixes: dict[str, list[tuple[str, str, str]]]
    tables: dict[str, dict[str, Place]]


class Modules:
    """All modules that an update may be for, under every name."""

    def __init__(self, tables: Tables, prefixes: Prefixes) -> None:
        """From a family's tables, and what files put before the names in them."""
        self.tables, self.prefixes = tables, prefixes
        self._tables = {(part, "."): dict(table) for part, table in tables.items()} | {
            (part, "_"): {name.replace(".", "_"): place for name, place in table.items()}
            for part, table in tables.items()
        }

    @property
    def owners(self) -> dict[str, str]:
        """Part -> how diffusers' metadata calls it."""
        return {
            part: prefix.rstrip(".")
            for part, prefixes in self.prefixes.items()
            for prefix, _, form in prefixes
            if form == "diffusers"
        }

    def dumps(self) -> str:
        """As JSON; what is as usual is left out."""
        tables = {
            part: {
                name: {field: value for field, value in vars(place).items() if value != USUAL.get(field)}
                for name, place in table.items()
            }
            for part, table in self.tables.items()
        }
        return json.dumps({"prefixes": self.prefixes, "tables": tables}, indent=0) + "\n"

    @classmethod
    def read(cls, path: Path) -> Modules:
        """What `dumps` has written.

        Raises:
            BundleError: it has not.
        """
        try:
            found = Stored.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as fault:
            why = fault.errors()[0]["msg"] if isinstance(fault, ValidationError) else fault
            raise BundleError(f"cannot read {path} ({why}); build the bundle again") from None
        return cls(found.tables, found.prefixes)

    def find(self, module: str) -> Found | None:
        """Where a module belongs; None: there is no such module."""
        fits = [
            (len(prefix), prefix, dot, form, part)
            for part, prefixes in self.prefixes.items()
            for prefix, dot, form in prefixes
            if part in self.tables and module.startswith(prefix)
        ]
        for _, prefix, dot, form, part in sorted(fits, reverse=True):
            name, table = module.removeprefix(prefix), self._tables[part, dot]
            place = table.get(name) or (table.get(name.rstrip("_")) if dot == "_" else None)
            if place is not None:
                return Found(place, prefix, "XLabs" if ".processor." in name else form)
        return None
