"""A model repository for Triton Inference Server: a model for each stage, and what its config.pbtxt says.

    REPOSITORY/denoiser/config.pbtxt
    REPOSITORY/denoiser/1/model.plan        or model.onnx, with its weights beside it
    REPOSITORY/conditions/config.pbtxt      an ensemble: from tokens to what the denoiser takes

Source: triton-inference-server/common, protobuf/model_config.proto. Triton puts a batch in front of every
input of a model that has a `max_batch_size`; rotation tables and timesteps have none, so it is 0 here and all
dims are spelled out. The denoising loop is the client's: an ensemble has no loops.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flux_trt.exporter.folder import remove
from flux_trt.exporter.written import cannot_write, link_or_copy, sync, write_file
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.engine import PLAN, Engine
from flux_trt.runtime.bundle.flow import ASKED, Flow
from flux_trt.runtime.bundle.manifest import Stage, Tensor
from flux_trt.runtime.errors import BuildError, BundleError

VERSION, CONFIG, ENSEMBLE = "1", "config.pbtxt", "conditions"
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


@dataclass(frozen=True)
class Served:
    """What Triton loads of a stage."""

    files: Mapping[str, Path]
    """By their names in the version's folder."""
    runs: str
    """The line of its config that says what runs it."""
    profiles: int = 0
    """Of an engine: as many as it has; 0 for a graph."""


def refuse_there(out: Path) -> None:
    """Refuse a place that something lies in.

    Raises:
        BuildError: it does, or that cannot be known.
    """
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as fault:
        raise cannot_write(out, fault) from fault
    if taken:
        raise BuildError(f"{out} is there already; give --out a new folder for the model repository")


def of_graph(bundle: Bundle, name: str) -> Served:
    """A stage's graph and weights, for Triton's onnxruntime."""
    stage = bundle.manifest.graph(name)
    weights = {Path(path).name: bundle.root / path for path in stage.weights}
    return Served({"model.onnx": bundle.root / stage.graph, **weights}, 'backend: "onnxruntime"')


def of_engine(folder: Path, engine: Engine) -> Served:
    """A stage's plan, for Triton's TensorRT."""
    profiles = len(engine.recipe.profiles)
    return Served({"model.plan": folder / PLAN}, 'platform: "tensorrt_plan"', profiles)


def write_repository(bundle: Bundle, served: Mapping[str, Served], out: Path) -> list[str]:
    """Write the repository, whole or not at all; files are linked where the disk can.

    Args:
        bundle: whose stages.
        served: by stage, or glue.
        out: the folder to be; one that is there must be empty.

    Returns:
        The names of its models.

    Raises:
        BuildError: `out` is there and not empty, or cannot be written.
    """
    out = out.resolve()
    refuse_there(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        try:
            for name, each in served.items():
                _write(aside / name, config(name, bundle.manifest.graph(name), each), each.files)
            names = [*served]
            if ensemble := _ensemble(bundle, served):
                _write(aside / ENSEMBLE, ensemble, {})
                names.append(ENSEMBLE)
            aside.chmod(0o755)
            sync(aside)
            if out.exists():
                out.rmdir()
            aside.rename(out)
            sync(out.parent)
        finally:
            remove(aside)
    except OSError as fault:
        raise cannot_write(Path(fault.filename) if isinstance(fault.filename, str) else out, fault) from fault
    return names


def config(name: str, stage: Stage, served: Served) -> str:
    """The text of a model's config.pbtxt."""
    lines = [f"name: {_text(name)}", served.runs, "max_batch_size: 0"]
    lines += _tensors("input", stage.inputs) + _tensors("output", stage.outputs)
    if served.profiles:
        chosen = ", ".join(_text(str(index)) for index in range(served.profiles))
        lines.append(f"instance_group [ {{ count: 1, kind: KIND_GPU, profile: [ {chosen} ] }} ]")
    return "\n".join(lines) + "\n"


def _ensemble(bundle: Bundle, served: Mapping[str, Served]) -> str | None:
    """From tokens, timesteps and guidance to all that the denoiser takes of other stages; None for a part.

    A text encoder's inputs have its name before them: each has ids of its own.
    """
    try:
        flow, manifest = Flow.of(bundle), bundle.manifest
    except BundleError:  # a partial bundle
        return None
    steps = [*flow.encoders, *flow.before]
    if any(name not in served for name in (*steps, "denoiser")):
        return None
    inputs: dict[str, Tensor] = {}
    lines: list[str] = []
    for name in steps:
        stage, maps = manifest.stages[name], []
        for each in stage.inputs:
            known = each.name if name not in flow.encoders else f"{name}_{each.name}"
            if name in flow.encoders or each.name in ASKED:
                inputs[known] = each.model_copy(update={"name": known})
            maps.append(f"input_map {{ key: {_text(each.name)}, value: {_text(known)} }}")
        maps += [
            f"output_map {{ key: {_text(each.name)}, value: {_text(each.name)} }}" for each in stage.outputs
        ]
        lines.append(f"    {{ model_name: {_text(name)}, model_version: -1, {', '.join(maps)} }}")
    given = [flow.given[name] for name in flow.conditions]
    head = [f"name: {_text(ENSEMBLE)}", 'platform: "ensemble"', "max_batch_size: 0"]
    head += _tensors("input", [*inputs.values()]) + _tensors("output", given)
    return "\n".join([*head, "ensemble_scheduling {", "  step [", ",\n".join(lines), "  ]", "}"]) + "\n"


def _tensors(what: str, tensors: Sequence[Tensor]) -> list[str]:
    found = ",\n".join(f"  {line}" for line in map(_tensor, tensors))
    return [f"{what} [", found, "]"]


def _tensor(each: Tensor) -> str:
    dims = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in each.dims)
    return f"{{ name: {_text(each.name)}, data_type: {TYPES[each.dtype]}, dims: [ {dims} ] }}"


def _text(value: str) -> str:
    return json.dumps(value)


def _write(folder: Path, text: str, files: Mapping[str, Path]) -> None:
    (folder / VERSION).mkdir(parents=True)
    for name, source in files.items():
        link_or_copy(source, folder / VERSION / name)
    write_file(folder / CONFIG, text.encode())
    for each in _folders(folder):
        sync(each)


def _folders(folder: Path) -> Iterator[Path]:
    yield folder / VERSION
    yield folder
