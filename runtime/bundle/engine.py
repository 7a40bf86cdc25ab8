"""TensorRT engines of a bundle: `engines/<stage>-<key>/` holds the plan, and `engine.json` says what it is.

They lie in the bundle, or in any other folder that is named; engines of several bundles may share one.

The key is a digest of everything the plan depends on, so a plan is never taken for another one: a graph that
was exported anew, another TensorRT or another GPU leads to another folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import shlex
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from flux_trt.runtime.bundle import plain
from flux_trt.runtime.bundle.flavour import FLAVOURS, FlavourName
from flux_trt.runtime.bundle.manifest import File, Manifest, Precision
from flux_trt.runtime.bundle.record import Record, StageName
from flux_trt.runtime.errors import BackendError, BundleError

FOLDER, RECORD, PLAN = "engines", "engine.json", "engine.plan"
SHOWN = 6  # engines that do not fit, in a message

Range = tuple[int, int, int]
"""Least, tuned-for and largest value of a dim."""
Profile = dict[str, Range]
"""The range of every dim that varies, by its name in the manifest: a shape of every input follows."""


class Recipe(Record):
    """Everything that a plan depends on."""

    stage: StageName = Field(description="or glue")
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
    builder: str = Field(default="", description="what made the plan: digest of our builder, and Polygraphy")

    @property
    def key(self) -> str:
        """SHA-256 of all of it, in a canonical text; an older engine says nothing of its builder."""
        facts = self.model_dump(exclude=None if self.builder else {"builder"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.stage}-{self.key[:16]}"

    @property
    def folder(self) -> str:
        """Where it lies in a bundle."""
        return f"{FOLDER}/{self.name}"


class Engine(Record):
    """All of `engine.json`."""

    recipe: Recipe
    plan: File

    def dumps(self) -> str:
        """The canonical text: sorted keys, two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def graph_digest(found: Manifest, stage: str) -> str:
    """SHA-256 over the digests of a stage's, or a glue graph's, graph and weights."""
    record = found.graph(stage)
    files = [found.files[path].sha256 for path in (record.graph, *sorted(record.weights))]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def engines(root: Path, elsewhere: Path | None = None) -> list[tuple[Path, Engine]]:
    """Every complete engine folder of a bundle with its record, in a fixed order.

    Args:
        root: the bundle's directory.
        elsewhere: another folder with engines, its own and maybe other bundles'; they come first.

    Raises:
        BundleError: a record that breaks the contract, or lies in a folder that is not its key's.
    """
    found = []
    places = [elsewhere, root / FOLDER] if elsewhere else [root / FOLDER]
    for place, path in [(at, each) for at in places for each in sorted(at.glob(f"*/{RECORD}"))]:
        try:
            engine = Engine.model_validate_json(plain.text(path, place))
        except (OSError, ValueError, RuntimeError) as fault:  # ValidationError is a ValueError
            why = str(fault).splitlines()[0]
            raise BundleError(f"cannot read {path} ({why}); remove its folder and build again") from None
        if engine.recipe.name != path.parent.name:
            raise BundleError(f"{path} is not in the folder of its key; remove the folder and build again")
        found.append((path.parent, engine))
    return found


def find(
    found: Manifest,
    root: Path,
    stage: str,
    flavour: FlavourName,
    version: str,
    capability: str,
    streaming: bool = False,
    elsewhere: Path | None = None,
) -> tuple[Path, Engine]:
    """The engine of a stage that runs here: its folder and its record.

    Args:
        found: the manifest of the bundle.
        root: the bundle's directory.
        stage: or glue.
        flavour: of the TensorRT that will run it.
        version: of that TensorRT.
        capability: compute capability of the GPU, "8.9".
        streaming: take one that can stream its weights.
        elsewhere: another folder with engines, see `engines`.

    Returns:
        Of several that run, one that streams only if that is asked for, then the one with most profiles.

    Raises:
        BackendError: there is none, and why those that are there do not run here.
        BundleError: a broken record.
    """
    faults, fitting, unstreamed = [], [], False
    for folder, engine in engines(root, elsewhere):
        recipe = engine.recipe
        if recipe.stage != stage or recipe.flavour != flavour:
            continue
        if recipe.graph != graph_digest(found, stage):
            faults.append("is of another graph than the bundle now has")
        elif recipe.version != version:
            faults.append(f"was built by {flavour} {recipe.version}")
        elif capability not in recipe.capabilities:
            faults.append(f"was built for sm {', '.join(recipe.capabilities)}")
        elif streaming and not recipe.weight_streaming:
            faults.append("was built without --weight-streaming")
            unstreamed = True
        else:
            rank = recipe.weight_streaming == streaming, len(recipe.profiles), bool(recipe.builder)
            fitting.append((*rank, folder.name, folder, engine))
            continue
        faults[-1] = f"{folder.name} {faults[-1]}"
    if not fitting:
        others = f"; and {len(faults) - SHOWN} others" if len(faults) > SHOWN else ""
        why = f": {'; '.join(faults[:SHOWN])}{others}" if faults else ""
        there = f"{root} and {elsewhere} have" if elsewhere else f"{root} has"
        raise BackendError(
            f"{there} no engine of {stage} for {flavour} {version} and sm {capability}{why}; "
            + _way_out(root, flavour, capability, unstreamed, elsewhere)
        )
    *_, folder, engine = max(fitting, key=lambda each: each[:4])
    return folder, engine


def _way_out(
    root: Path, flavour: FlavourName, capability: str, streaming: bool, elsewhere: Path | None
) -> str:
    """The command that builds what is lacking, to be typed as it is; another backend where none can."""
    able = FLAVOURS[flavour].capabilities
    if able and capability not in able:
        return f"{flavour} has none for sm {capability} at all; use --backend tensorrt, or onnxruntime"
    command = ["flux-export", "engines", str(root), "--backend", flavour, "--sm", capability]
    command += ["--weight-streaming"] if streaming else []
    command += ["--engines", str(elsewhere)] if elsewhere else []
    return f"build it with {shlex.join(command)}"


def read_plan(folder: Path, engine: Engine, check: bool = True) -> memoryview:
    """The bytes of a plan, mapped from its file.

    Args:
        folder: from `find`.
        engine: from `find`.
        check: compare the SHA-256; the size is always compared.

    Raises:
        BundleError: the plan is missing, or is not the one that was built.
    """
    path = folder / PLAN
    try:
        with path.open("rb") as file:
            plan = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as fault:
        raise BundleError(f"cannot read {path} ({fault}); remove its folder and build again") from None
    if plan.nbytes != engine.plan.bytes or (check and hashlib.sha256(plan).hexdigest() != engine.plan.sha256):
        raise BundleError(
            f"{path} is not the engine that was built (its size or SHA-256 differs); "
            f"remove its folder and build again"
        )
    return plan


def choose_profile(profiles: list[Profile], dims: Mapping[str, int]) -> int | None:
    """The profile whose tuned-for dims are nearest to `dims` among those that take them; None: none does."""
    known = {dim: max(size, 1) for dim, size in dims.items()}  # of no reference pictures there are 0 tokens
    fitting = [
        (sum(abs(math.log(size / profile[dim][1])) for dim, size in known.items() if dim in profile), index)
        for index, profile in enumerate(profiles)
        if not _outside(profile, dims)
    ]
    return min(fitting)[1] if fitting else None


def nearest(profiles: list[Profile], dims: Mapping[str, int]) -> dict[str, int]:
    """The dims that the nearest profile would take instead of those of `dims` that it does not."""

    def change(profile: Profile) -> float:
        return sum(
            abs(math.log(max(dims[dim], 1) / max(size, 1))) for dim, size in _outside(profile, dims).items()
        )

    return _outside(min(profiles, key=change), dims)


def _outside(profile: Profile, dims: Mapping[str, int]) -> dict[str, int]:
    """The dims that are out of range, with the nearest value that is not."""
    inside = {
        dim: min(max(size, profile[dim][0]), profile[dim][2]) for dim, size in dims.items() if dim in profile
    }
    return {dim: size for dim, size in inside.items() if size != dims[dim]}
