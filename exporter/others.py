"""`flux-export engines --for`: engines for programs that are not ours, or the commands that build them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from flux_trt.exporter.engines.engine import Options
from flux_trt.exporter.engines.options import build_engines, shapes_of
from flux_trt.exporter.engines.triton import Served, of_engine, of_graph, refuse_there, write_repository
from flux_trt.exporter.engines.trtexec import trtexec
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.engine import RECORD, Engine
from flux_trt.runtime.bundle.flavour import FlavourName
from flux_trt.runtime.errors import BuildError


def commands(bundle: Path, backend: str, stages: Sequence[str] | None, chosen: dict[str, Any]) -> list[str]:
    """The command of NVIDIA's builder for each stage and glue graph.

    Raises:
        BuildError: a backend without such a tool, or options that it has not.
    """
    if backend == "onnxruntime":
        raise BuildError("onnxruntime runs the graphs as they are; give --backend tensorrt or tensorrt-rtx")
    if chosen["rope"] == "plugin":
        raise BuildError("the plugin is registered by our own builder; leave --rope out with --for trtexec")
    if chosen.pop("into") or chosen.pop("force"):
        raise BuildError(
            "--for trtexec builds nothing: it only says the commands; leave --engines and --force out"
        )
    opened = Bundle.open(bundle, check=False)
    shapes = shapes_of(bundle, chosen)
    found = opened.manifest
    for stage in stages or ():
        opened.stage(stage)
    names = [*(stages or found.stages), *(() if stages else found.glue)]
    return trtexec(opened, names, shapes, Options(flavour=cast(FlavourName, backend), **chosen))


def repository(
    bundle: Path, backend: str, stages: Sequence[str] | None, chosen: dict[str, Any], out: Path | None
) -> list[str]:
    """Write Triton's model repository `out`, with engines that are built first, or with the graphs.

    Returns:
        The names of its models.

    Raises:
        BuildError: no `out`, or one that cannot be; a backend that Triton has not.
    """
    if out is None:
        raise BuildError("--for triton writes a model repository; say where with --out")
    if backend == "tensorrt-rtx":
        raise BuildError(
            "Triton runs no plans of TensorRT-RTX; use --backend tensorrt, or onnxruntime for the graphs"
        )
    refuse_there(out)
    opened = Bundle.open(bundle)
    found = opened.manifest
    for stage in stages or ():
        opened.stage(stage)
    names = [*(stages or found.stages), *(() if stages else found.glue)]
    served: dict[str, Served] = {}
    if backend == "onnxruntime":
        if only := [name for name in names if found.graph(name).precision == "nvfp4"]:
            raise BuildError(
                f"{only[0]} is nvfp4, for which only TensorRT has operators; use --backend tensorrt"
            )
        served = {name: of_graph(opened, name) for name in names}
    else:
        for folder in build_engines(bundle, cast(FlavourName, backend), list(stages or found.stages), chosen):
            engine = Engine.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
            if engine.recipe.stage in names:
                served[engine.recipe.stage] = of_engine(folder, engine)
    return write_repository(opened, served, out)
