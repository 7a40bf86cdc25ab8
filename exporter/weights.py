"""The weights of a graph: ONNX external data that is a safetensors file.

A parameter that the checkpoint already holds in the right dtype is used where it lies, by a hard link of
the checkpoint's file into the bundle (onnxruntime refuses a symlink that leaves the bundle). All others are
made by their recipes, one tensor at a time, in a safetensors file of the stage's own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from flux_trt.exporter.fit import parameters
from flux_trt.exporter.recipe import Key
from flux_trt.exporter.stages import DTYPES, Stage, skeleton
from flux_trt.exporter.tensorfile import TensorInfo, Writer
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.manifest import File
from flux_trt.runtime.progress import Progress, silent

WORTH_LINKING = 0.5
FICLONE = 0x40049409
Links = Mapping[Path, str]


@dataclass(frozen=True)
class Written:
    """The weight files a graph refers to, and the sizes and hashes of those that were written for it."""

    used: list[str]
    made: dict[str, File]


def plan_links(stages: Iterable[Stage], folder: Path) -> dict[Path, str]:
    """Bring into `folder`, without copying, the checkpoint files that the stages can use as they are.

    A file is worth its place when at least half of its bytes are used. Where the file system shares blocks
    between files, the bundle's is a clone that later changes of the checkpoint do not reach; else it is a
    hard link; where neither is allowed, the weights are copied.

    Returns:
        checkpoint file -> path inside the bundle.
    """
    used: Counter[tuple[str, Path]] = Counter()
    for stage in stages:
        for name in parameters(stage, skeleton(stage)):
            if (info := _identity(stage, name)) is not None:
                used[stage.part, info.file] += info.nbytes
    links: dict[Path, str] = {}
    for (part, file), nbytes in used.items():
        if nbytes >= WORTH_LINKING * file.stat().st_size:
            inside = f"{part}/{file.name}"
            (folder / part).mkdir(exist_ok=True)
            if _clone(file.resolve(), folder / inside) or _hard_link(file.resolve(), folder / inside):
                links[file] = inside
            elif not any((folder / part).iterdir()):
                (folder / part).rmdir()
    return links


def _clone(source: Path, target: Path) -> bool:
    """A copy that shares its blocks with `source`, on file systems that can (Btrfs, XFS)."""
    try:
        import fcntl

        with source.open("rb") as old, target.open("xb") as new:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
    except (ImportError, OSError):
        target.unlink(missing_ok=True)
        return False
    return True


def _hard_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _identity(stage: Stage, name: str) -> TensorInfo | None:
    """The checkpoint's own tensor, when it is the parameter as it stands."""
    recipe = stage.recipes[name]
    if not isinstance(recipe, Key):
        return None
    info = stage.tensors[recipe.names[0]]
    return info if info.dtype == DTYPES[stage.precision] else None


def bytes_to_write(stage: Stage, links: Links) -> int:
    """Bytes of `<stage>.safetensors`: the parameters that are not used where they lie."""
    made = 0
    for name, parameter in parameters(stage, skeleton(stage)).items():
        info = _identity(stage, name)
        if info is None or info.file not in links:
            made += parameter.nbytes
    return made


def attach(model: ir.Model, stage: Stage, folder: Path, links: Links, progress: Progress = silent) -> Written:
    """Give every parameter of `model` its bytes: in a linked file, or in `<stage>.safetensors`.

    Args:
        model: a traced stage; changed in place.
        stage: where its weights come from.
        folder: of the bundle being written.
        links: from `plan_links`.
        progress: told (stage, bytes written, bytes to write).

    Raises:
        BuildError: the graph has a parameter without a recipe.
        CheckpointError: a checkpoint file ends early.
    """
    dtype, made, placed = DTYPES[stage.precision], [], {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        if name not in stage.recipes:
            raise BuildError(f"{stage.name}: no recipe for {name}; this is a bug, report it")
        info = _identity(stage, name)
        if info is not None and info.file in links:
            placed[name] = (info, links[info.file])
        else:
            made.append(name)
    files: dict[str, File] = {}
    if made:
        own = f"{stage.name}.safetensors"
        shapes = [(name, dtype, stage.recipes[name].shape(stage.tensors)) for name in made]
        with Writer(folder / own, shapes) as writer:
            for name in made:
                tensor = stage.recipes[name].load(stage.tensors).to(dtype)
                if not torch.isfinite(tensor).all():
                    raise BuildError(
                        f"{stage.name}: {name} has values that are not finite in {stage.precision}; "
                        "use --precision fp32 or bf16, or check the checkpoint"
                    )
                writer.write(name, tensor)
                progress(stage.name, writer.nbytes, writer.total)
        placed |= {name: (info, own) for name, info in writer.entries.items()}
        files[own] = File(bytes=writer.nbytes, sha256=writer.sha256)
    for name, (info, inside) in placed.items():
        value = model.graph.initializers[name]
        assert value.dtype is not None
        value.const_value = ir.ExternalTensor(
            inside,
            info.offset,
            info.nbytes,
            value.dtype,
            shape=ir.Shape(info.shape),
            name=name,
            base_dir=folder,
        )
    return Written(sorted({inside for _, inside in placed.values()}), files)
