"""A second build keeps what would come out the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

from flux_trt.exporter.families.stage import Stage
from flux_trt.exporter.folder import digest
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import File, Manifest
from flux_trt.runtime.errors import BundleError

PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers", "diffusers")


def versions() -> dict[str, str]:
    """The packages whose code ends up in a graph."""
    return {name: version(name) for name in PACKAGES}


@cache
def _exporter_digest() -> str:
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def key(stage: Stage, sources: Mapping[Path, File], link: bool) -> str:
    """A digest of all that a stage is made from: weights, recipes, config, precision, code and packages."""
    facts = {
        "stage": stage.name,
        "precision": stage.precision,
        "base": stage.base,
        "quantisation": repr(stage.quantisation),
        "config": {name: repr(value) for name, value in stage.config.items()},
        "recipes": {name: repr(recipe) for name, recipe in stage.recipes.items()},
        "link": link,
        "inline": stage.inline,
        "sources": [sources[file].sha256 for file in stage.files],
        "exporter": _exporter_digest(),
        "packages": versions(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def previous(out: Path) -> Manifest | None:
    """The manifest of the bundle that is about to be replaced, if there is a readable one."""
    try:
        return manifest.read(out)
    except BundleError:
        return None


def reuse(
    name: manifest.StageName, wanted: str, old: Manifest | None, out: Path, folder: Path
) -> tuple[manifest.Stage, dict[str, File]] | None:
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
        try:
            os.link(out / path, folder / path)
        except OSError:
            shutil.copyfile(out / path, folder / path)
    return stage, files
