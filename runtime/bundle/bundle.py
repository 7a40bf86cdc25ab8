"""A bundle on disk: one directory that holds all a pipeline needs, opened and verified."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import File, GlueName, Manifest, Stage
from flux_trt.runtime.bundle.record import StageName
from flux_trt.runtime.bundle.rules import Tokenizer
from flux_trt.runtime.errors import BundleError

CHUNK = 1 << 22


@dataclass(frozen=True)
class Bundle:
    """An open bundle: every file of its manifest is there and lies inside `root`."""

    root: Path
    manifest: Manifest
    digest: str
    """SHA-256 of `bundle.json`, which holds the hashes of all files: it stands for the whole bundle."""
    engines: Path | None = None
    """Another folder with TensorRT engines than its own."""

    @classmethod
    def open(cls, root: str | Path, check: bool = True, engines: str | Path | None = None) -> Bundle:
        """Open the bundle directory `root`.

        Args:
            root: what `flux-export build --out` has written.
            check: also compare every file's SHA-256. Sizes are always compared.
            engines: a folder with TensorRT engines beside those in the bundle.

        Raises:
            BundleError: no bundle, a bundle of a newer tool, or a file that is missing, outside of the
                bundle, or not what the manifest says; no such folder of engines.
        """
        root = Path(root)
        try:
            str(root.absolute()).encode()
        except UnicodeEncodeError:
            shown = os.fsencode(root).decode(errors="replace")
            raise BundleError(f"{shown} is not a name in UTF-8, which graphs need; rename it") from None
        if engines is not None and not Path(engines).is_dir():
            raise BundleError(
                f"no folder {engines}; give the one that flux-export engines --engines has written"
            )
        found = manifest.read(root)
        for name, expected in found.files.items():
            _expect_there(root, name, expected)
        digest = _sha256(root / manifest.NAME)
        opened = cls(root, found, digest, Path(engines) if engines is not None else None)
        if check:
            opened.verify()
        return opened

    @cached_property
    def content(self) -> str:
        """SHA-256 of the manifest without its provenance, and without what it only advises: the same for a
        bundle that was built again from the same, at another time or place."""
        facts = self.manifest.model_dump(mode="json", exclude={"provenance", "prompts"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def verify(self) -> None:
        """Compare every file's SHA-256.

        Raises:
            BundleError: a file that is not what the manifest says.
        """
        for name, expected in self.manifest.files.items():
            _expect_unchanged(self.root, name, expected)

    def stage(self, name: StageName) -> Stage:
        """The manifest's entry of a stage.

        Raises:
            BundleError: a partial bundle without it.
        """
        if name not in self.manifest.stages:
            has = ", ".join(self.manifest.stages) or "none"
            raise BundleError(
                f"{self.root} is a partial bundle without the stage {name} (it has: {has}); "
                f"build it without --stages"
            )
        return self.manifest.stages[name]

    def glue(self, name: GlueName) -> Stage:
        """The manifest's entry of a glue graph.

        Raises:
            BundleError: a bundle without it: a partial one, or one of an older tool.
        """
        if name not in self.manifest.glue:
            raise BundleError(f"{self.root} has no glue graph {name}; build the bundle again")
        return self.manifest.glue[name]

    def tokenizer(self, name: str) -> Tokenizer:
        """The manifest's entry of a tokenizer.

        Raises:
            BundleError: a bundle without it.
        """
        if name not in self.manifest.tokenizers:
            raise BundleError(f"{self.root} has no tokenizer for {name}; build it without --stages")
        return self.manifest.tokenizers[name]


def _expect_there(root: Path, name: str, expected: File) -> None:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{path} leaves the bundle; copy the file into it or build the bundle again")
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the bundle again or build it again")
    size = path.stat().st_size
    if size != expected.bytes:
        raise BundleError(
            f"{path} has {size} bytes, not {expected.bytes}; copy the bundle again or build it again"
        )


def _expect_unchanged(root: Path, name: str, expected: File) -> None:
    path = root / name
    try:
        found = _sha256(path)
    except OSError as fault:
        raise BundleError(f"cannot read {path}: {fault.strerror}; check its permissions") from None
    if found != expected.sha256:
        raise BundleError(
            f"{path} is not the file that was built (its SHA-256 differs); "
            f"copy the bundle again or build it again"
        )


def _sha256(path: Path) -> str:
    digest, chunk = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
    return digest.hexdigest()
