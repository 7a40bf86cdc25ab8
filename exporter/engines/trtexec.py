"""Shapes of a stage's inputs for other builders, and the command of TensorRT's own that builds its engine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from flux_trt.exporter.engines.engine import Options
from flux_trt.exporter.engines.profile import Shapes, profiles, shapes_of
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flavour import FlavourName

TOOLS: dict[FlavourName, str] = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
"""What NVIDIA's archives call it."""
BOUNDS = ("minShapes", "optShapes", "maxShapes")


def trtexec(
    bundle: Bundle,
    stages: Sequence[str],
    shapes: Shapes,
    options: Options,
) -> list[str]:
    """A command line for each stage, with every profile that `flux-export engines` would build.

    Source: trtexec --help, where --profile=N begins the shapes of another profile.

    Args:
        bundle: whose graphs.
        stages: of the bundle, or glue.
        shapes: sizes, batch and references to serve.
        options: for which GPUs, and the builder's settings.

    Raises:
        RequestError: a size that the bundle does not accept.
    """
    found, lines, flavour = bundle.manifest, list[str](), options.flavour
    for name in stages:
        graph = found.graph(name)
        words = [
            TOOLS[flavour],
            f"--onnx={bundle.root.resolve() / graph.graph}",
            f"--saveEngine={name}.plan",
            "--skipInference",
        ]
        if flavour == "tensorrt":
            words.append("--stronglyTyped")  # TensorRT-RTX knows no other
        elif options.capabilities:
            targets = (each.replace(".", "") for each in options.capabilities)
            words.append(f"--computeCapabilities={','.join(targets)}")
        words += _settings(options)
        made = profiles(found, name, shapes)
        for number, profile in enumerate(made):
            inputs = [
                (each.name, shapes_of(profile, each.dims)) for each in graph.inputs if _varies(each.dims)
            ]
            words += [f"--profile={number}"] if len(made) > 1 else []
            words += [
                f"--{bound}=" + ",".join(f"{name}:{_x(bounds[index])}" for name, bounds in inputs)
                for index, bound in enumerate(BOUNDS)
                if inputs
            ]
        lines.append(shlex.join(words))
    return lines


def _settings(options: Options) -> list[str]:
    level, cache = options.opt_level, options.timing_cache
    return [
        *([f"--builderOptimizationLevel={level}"] if level is not None else []),
        *(["--allowWeightStreaming"] if options.weight_streaming else []),
        *([f"--timingCacheFile={cache.resolve()}"] if cache else []),
    ]


def _varies(dims: Sequence[int | str]) -> bool:
    return any(isinstance(dim, str) for dim in dims)


def _x(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
