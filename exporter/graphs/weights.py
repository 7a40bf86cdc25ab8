"""The weights of a graph: ONNX external data that is a safetensors file.

A parameter that the checkpoint already holds in the right dtype is used where it lies, by a hard link of
the checkpoint's file into the bundle (onnxruntime refuses a symlink that leaves the bundle). All others are
made by their recipes, one tensor at a time, in a safetensors file of the stage's own; what is quantised lies
there as codes, `<name>`, with their scale, `<name>_scale`, and what that may be scaled by, `<name>_scale_2`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from flux_trt.exporter.checkpoints.recipe import Key
from flux_trt.exporter.checkpoints.tensorfile import TensorInfo, Writer, read_header
from flux_trt.exporter.families.stage import Stage, parameters, skeleton
from flux_trt.exporter.quantise.format import SCALE, Shape, Weights
from flux_trt.exporter.quantise.formats import FORMATS
from flux_trt.exporter.quantise.kept import kept
from flux_trt.runtime.bundle.manifest import File
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.progress import Progress, silent

WORTH_LINKING = 0.5
FICLONE = 0x40049409
Links = Mapping[Path, str]
Entry = tuple[str, torch.dtype, Shape]


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
    links: dict[Path, str] = {}
    for file, inside in linkable(stages).items():
        place = folder / inside
        place.parent.mkdir(exist_ok=True)
        if _clone(file.resolve(), place) or _hard_link(file.resolve(), place):
            links[file] = inside
        elif not any(place.parent.iterdir()):
            place.parent.rmdir()
    return links


def linkable(stages: Iterable[Stage]) -> dict[Path, str]:
    """The checkpoint files that are worth a place in a bundle as they are -> their path in it."""
    return {
        file: f"{part}/{file.name}"
        for (part, file), tensors in as_they_lie(stages).items()
        if sum(info.nbytes for info in tensors.values()) >= WORTH_LINKING * file.stat().st_size
    }


def as_they_lie(stages: Iterable[Stage]) -> dict[tuple[str, Path], dict[str, TensorInfo]]:
    """(Part, file) -> the tensors in it that are parameters without any change, by their names there."""
    found: dict[tuple[str, Path], dict[str, TensorInfo]] = {}
    for stage in stages:
        for name in parameters(stage, skeleton(stage)):
            if (info := _identity(stage, name)) is not None:
                found.setdefault((stage.part, info.file), {})[stage.recipes[name].names[0]] = info
    return found


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
    if not isinstance(recipe, Key) or name in _quantised(stage):
        return None
    info = stage.tensors[recipe.names[0]]
    return info if isinstance(info, TensorInfo) and info.dtype == stage.dtype else None


def _quantised(stage: Stage) -> frozenset[str]:
    return stage.quantisation.weights if stage.quantisation else frozenset()


def _entries(stage: Stage, names: Iterable[str]) -> list[Entry]:
    """The tensors of `<stage>.safetensors` in their order: plain ones, then codes, each with what scales its
    blocks behind it, then the scales that are small.

    So each begins at a multiple of its element's size, and only small ones wait for their turn.
    """
    plain: list[Entry] = []
    codes: list[Entry] = []
    small: list[Entry] = []
    for name in names:
        shape = stage.recipes[name].shape(stage.tensors)
        if name not in _quantised(stage):
            plain.append((name, stage.dtype, shape))
            continue
        for suffix, (dtype, part) in _parts(stage, name, shape).items():
            (codes if len(part) == len(shape) else small).append((name + suffix, dtype, part))
    return plain + codes + small


def _format(stage: Stage, name: str) -> Weights:
    """How a quantised weight is kept."""
    assert stage.quantisation is not None
    return FORMATS[stage.quantisation.layers[name.removesuffix(".weight")]].weights


def _parts(stage: Stage, name: str, shape: Shape) -> Mapping[str, tuple[torch.dtype, Shape]]:
    """What a quantised weight becomes, by what is added to its name."""
    assert stage.quantisation is not None
    return _format(stage, name).parts(shape, stage.dtype, stage.quantisation.per_channel)


def bytes_to_write(stage: Stage, links: Links) -> int:
    """Bytes of `<stage>.safetensors`: the parameters that are not used where they lie."""
    if stage.shares is not None:
        return 0
    names = parameters(stage, skeleton(stage))
    infos = {name: _identity(stage, name) for name in names}
    own = [name for name, info in infos.items() if info is None or info.file not in links]
    return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in _entries(stage, own))


def linked_bytes(stage: Stage, links: Links) -> int:
    """Bytes of the checkpoint's tensors that the stage uses where they lie."""
    infos = {_identity(stage, name) for name in parameters(stage, skeleton(stage))}
    return sum(info.nbytes for info in infos if info is not None and info.file in links)


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
    made, placed = [], {}
    scales = {
        name + suffix
        for name in _quantised(stage)
        for suffix in _parts(stage, name, stage.recipes[name].shape(stage.tensors))
        if suffix
    }
    for name, value in model.graph.initializers.items():
        if value.const_value is not None or name in scales:
            continue
        if name not in stage.recipes:
            raise BuildError(f"{stage.name}: no recipe for {name}; this is a bug, report it")
        info = _identity(stage, name)
        if info is not None and info.file in links:
            placed[name] = (info, links[info.file])
        else:
            made.append(name)
    files: dict[str, File] = {}
    if made and stage.shares is not None:
        own = f"{stage.shares}.safetensors"
        there = read_header(folder / own)
        placed |= {name: (there[name], own) for name in (*made, *scales)}
    elif made:
        own = f"{stage.name}.safetensors"
        with Writer(folder / own, _entries(stage, made)) as writer:
            _write(writer, stage, progress)
        placed |= {name: (info, own) for name, info in writer.entries.items()}
        files[own] = File(bytes=writer.nbytes, sha256=writer.sha256)
    for name, (info, inside) in placed.items():
        value = model.graph.initializers[name]
        assert value.dtype is not None
        assert value.shape is not None
        value.const_value = ir.ExternalTensor(
            inside,
            info.offset,
            info.nbytes,
            value.dtype,
            shape=value.shape,
            name=name,
            base_dir=folder,
        )
    return Written(sorted({inside for _, inside in placed.values()}), files)


def _finite(tensor: torch.Tensor) -> bool:
    return all(bool(torch.isfinite(bound)) for bound in tensor.aminmax())  # nan is both


def _not_finite(stage: Stage, name: str) -> str:
    """Whose fault it is: the checkpoint's, or that of a precision with too small a range."""
    if not _finite(stage.recipes[name].load(stage.tensors).float()):
        return broken([f"{stage.part}: {name}"])
    return (
        f"{stage.name}: {name} has values that are not finite in {stage.base or stage.precision}; "
        "use --precision fp32 or bf16"
    )


def broken(names: Sequence[str]) -> str:
    """That a checkpoint holds inf or nan, in the tensors `names`."""
    others = f", as have {len(names) - 1} others" if len(names) > 1 else ""
    return (
        f"{names[0]} has values that are not finite{others}; the checkpoint is damaged, "
        "copy or download it again"
    )


def _write(writer: Writer, stage: Stage, progress: Progress) -> None:
    """Make every announced tensor and write it, one at a time."""
    made: dict[str, torch.Tensor] = {}
    for name, info in writer.entries.items():
        if name not in made:
            tensor, small = stage.recipes[name].load(stage.tensors), name in _quantised(stage)
            tensor = tensor.float() if small else tensor.to(info.dtype)
            if not _finite(tensor):
                raise BuildError(_not_finite(stage, name))
            made |= _encoded(stage, name, tensor) if small else {name: tensor}
        writer.write(name, made.pop(name))
        progress(stage.name, writer.nbytes, writer.total)


def _encoded(stage: Stage, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a quantised weight becomes, by the names in the file."""
    assert stage.quantisation is not None
    how, weights = (stage.dtype, stage.quantisation.per_channel), _format(stage, name)
    had = (
        kept(stage.recipes[name], stage.tensors, *how)
        if weights.kind == FORMATS["fp8"].weights.kind
        else None
    )
    parts = {"": had[0], SCALE: had[1]} if had else weights.encode(weight, *how)
    return {name + suffix: part for suffix, part in parts.items()}
