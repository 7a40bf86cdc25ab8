"""A second build keeps what would come out the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flux_trt.exporter.checkpoints.tensorfile import Decoded
from flux_trt.exporter.families.stage import Stage, parameters, skeleton
from flux_trt.exporter.folder import digest
from flux_trt.exporter.written import link_or_copy
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import File, Manifest
from flux_trt.runtime.errors import BundleError

PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers", "diffusers")
UNDER = ("numpy", "ml-dtypes", "gguf")
"""Those that make constants and decode weights; they are in a stage's key but not in the manifest."""
ROOT = Path(__file__).parents[1]
MADE_BY = (
    *("exporter/build.py", "exporter/faults.py", "exporter/written.py", "exporter/lock.py"),
    *("exporter/checkpoints", "exporter/families", "exporter/graphs", "exporter/quantise"),
    *("plugins", "runtime/bundle", "runtime/lora"),
    *("runtime/errors.py", "runtime/progress.py"),
)
"""The files and folders whose code a stage is made by; the commands, engines, tasks and verify are not."""


def versions() -> dict[str, str]:
    """The packages whose code ends up in a graph."""
    return {name: version(name) for name in PACKAGES}


def code() -> list[Path]:
    """The files that a stage is made by."""
    made_by = [ROOT / each for each in MADE_BY]
    return sorted(path for each in made_by for path in ([each] if each.is_file() else each.rglob("*.py")))


def code_digest() -> str:
    """SHA-256 of their names and bytes."""
    found = hashlib.sha256()
    for path in code():
        found.update(f"{path.relative_to(ROOT).as_posix()} {digest(path).sha256}\n".encode())
    return found.hexdigest()


_code_digest = cache(code_digest)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def key(stage: Stage, sources: Mapping[Path, File], link: bool) -> str:
    """A digest of all that a stage is made from: weights, recipes, config, precision, code and packages.

    Of a part that several stages share, a stage is made from its own tensors only.
    """
    recipes = {name: stage.recipes[name] for name in parameters(stage, skeleton(stage))}
    own = {each: stage.tensors[each] for recipe in recipes.values() for each in recipe.names}
    made = {name: info for name, info in own.items() if isinstance(info, Decoded) and info.told}
    facts = {
        "stage": stage.name,
        "precision": stage.precision,
        "base": stage.base,
        "quantisation": repr(stage.quantisation),
        "config": {name: repr(value) for name, value in stage.config.items()},
        "recipes": {name: repr(recipe) for name, recipe in recipes.items()},
        "made": {
            name: (each.told, [sources[file].sha256 for file in each.files]) for name, each in made.items()
        },
        "link": link,
        "inline": stage.inline,
        "inputs": [each.model_dump() for each in stage.inputs] if stage.shares else None,
        "sources": [
            sources[file].sha256 for file in sorted({file for each in own.values() for file in each.files})
        ],
        "code": _code_digest(),
        "packages": {**versions(), **{name: _installed(name) for name in UNDER}},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def previous(out: Path) -> Manifest | None:
    """The manifest of the bundle that is about to be replaced, if there is a readable one."""
    try:
        return manifest.read(out)
    except BundleError:
        return None


Kept = tuple[manifest.Stage, dict[str, File]]
"""A stage and its files."""


def reuse(
    name: manifest.StageName, wanted: str, old: Manifest | None, out: Path, folder: Path
) -> Kept | None:
    """Take over a stage's files when it was built from the same things and they are still whole.

    Returns:
        the stage and its files, or None when it must be built.
    """
    stage = old.stages.get(name) if old else None
    if old is None or stage is None or stage.key != wanted:
        return None
    files = {path: old.files[path] for path in (stage.graph, *stage.weights)}
    fresh = [path for path in files if not (folder / path).exists()]
    if any(not (out / path).is_file() or digest(out / path) != files[path] for path in fresh):
        return None
    for path in fresh:
        (folder / path).parent.mkdir(exist_ok=True)
        link_or_copy(out / path, folder / path)
    return stage, files


def is_same(found: Manifest, out: Path, folder: Path) -> bool:
    """Whether the bundle at `out` is, byte by byte, the one of the manifest `found` that is in `folder`."""
    try:
        if (out / manifest.NAME).read_bytes() != found.dumps().encode():
            return False
        return all(
            (out / path).samefile(folder / path) or digest(out / path) == file
            for path, file in found.files.items()
        )
    except OSError:
        return False
