"""TensorRT engines in a bundle: `engines/<stage>-<key>/` holds the plan, and `engine.json` says what it is.

The key is a digest of everything the plan depends on, so a plan is never taken for another one: a graph that
was exported anew, another TensorRT or another GPU leads to another folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import Field, ValidationError

from flux_trt.runtime.errors import BundleError
from flux_trt.runtime.flavour import FlavourName
from flux_trt.runtime.manifest import File, Manifest, Precision, Record, StageName

FOLDER, RECORD, PLAN = "engines", "engine.json", "engine.plan"

Range = tuple[int, int, int]
"""Least, tuned-for and largest value of a dim."""
Profile = dict[str, Range]
"""The range of every dim that varies, by its name in the manifest: a shape of every input follows."""


class Recipe(Record):
    """Everything that a plan depends on."""

    stage: StageName
    graph: str = Field(description="digest of the graph's and its weights' bytes: `graph_digest`")
    precision: Precision
    flavour: FlavourName
    version: str = Field(description="of the TensorRT that built it, and the only one that runs it")
    capabilities: list[str] = Field(
        description='compute capabilities of the GPUs it runs on: ["8.9", "12.0"]'
    )
    profiles: list[Profile] = Field(description="in the engine's order")
    plugins: list[str] = Field(description="name:version of every plugin that the plan calls")
    opt_level: int | None = None
    weight_streaming: bool = False

    @property
    def key(self) -> str:
        """SHA-256 of all of it, in a canonical text."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Where it lies in the bundle."""
        return f"{FOLDER}/{self.stage}-{self.key[:16]}"


class Engine(Record):
    """All of `engine.json`."""

    recipe: Recipe
    plan: File

    def dumps(self) -> str:
        """The canonical text: sorted keys, two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def graph_digest(found: Manifest, stage: StageName) -> str:
    """SHA-256 over the digests of a stage's graph and weights."""
    record = found.stages[stage]
    files = [found.files[path].sha256 for path in (record.graph, *sorted(record.weights))]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def engines(root: Path) -> list[tuple[Path, Engine]]:
    """Every complete engine folder of a bundle with its record, in a fixed order.

    Raises:
        BundleError: a record that breaks the contract, or lies in a folder that is not its key's.
    """
    found = []
    for path in sorted((root / FOLDER).glob(f"*/{RECORD}")):
        try:
            engine = Engine.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as fault:
            why = str(fault).splitlines()[0]
            raise BundleError(f"cannot read {path} ({why}); remove its folder and build again") from None
        if engine.recipe.folder != f"{FOLDER}/{path.parent.name}":
            raise BundleError(f"{path} is not in the folder of its key; remove the folder and build again")
        found.append((path.parent, engine))
    return found
