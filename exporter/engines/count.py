"""What TensorRT-RTX makes of a bundle's stages: each is built once, at one shape, and nothing is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flux_trt.exporter.engines import child
from flux_trt.exporter.engines.builder import Job
from flux_trt.exporter.engines.preflight import refuse_targets
from flux_trt.exporter.engines.profile import Shapes, profiles
from flux_trt.exporter.engines.report import Counts
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.engine import Profile, Recipe, graph_digest
from flux_trt.runtime.bundle.flavour import FLAVOURS
from flux_trt.runtime.bundle.manifest import Manifest, StageName
from flux_trt.runtime.progress import Progress, silent


def count(
    root: Path,
    stages: Sequence[StageName] | None = None,
    capability: str = "8.9",
    size: tuple[int, int] | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[StageName, Counts]]:
    """The counts of each stage's engine for one picture at one size, built without a GPU and let go.

    Args:
        root: the bundle's directory.
        stages: None: all of the bundle.
        capability: compute capability of the GPU to build for.
        size: (width, height) in pixels; None: the bundle's default.
        progress: told (stage: phase, steps done, steps).

    Raises:
        BundleError: no bundle, or a partial one without such a stage.
        BackendError: TensorRT-RTX is not installed.
        BuildError: a stage cannot be built for that GPU, or the builder failed.
        RequestError: a size that the bundle does not accept.
    """
    bundle, flavour = Bundle.open(root, check=False), FLAVOURS["tensorrt-rtx"]
    found = bundle.manifest
    chosen = list(found.stages) if stages is None else list(stages)
    refuse_targets(flavour, [capability], [bundle.stage(name).kind for name in chosen])
    version = flavour.version()
    for name in chosen:
        stage = bundle.stage(name)
        recipe = Recipe(
            stage=name,
            graph=graph_digest(found, name),
            precision=stage.precision,
            flavour=flavour.name,
            version=version,
            capabilities=[capability],
            profiles=[_fixed(found, name, size)],
            plugins=[],
        )
        graph = (root / stage.graph).resolve()
        built = child.run(
            Job(graph=graph, inputs=stage.inputs, recipe=recipe, plan=None, counted=True), flavour, progress
        )
        assert built.counts is not None
        yield name, built.counts


def _fixed(found: Manifest, name: StageName, size: tuple[int, int] | None) -> Profile:
    """Every dim at the value that engines are tuned for: only then the report has numbers."""
    sizes = (size or (found.defaults.width, found.defaults.height),)
    tuned = profiles(found, name, Shapes(sizes, wide=False, pairs=False))[0]
    return {dim: (each[1],) * 3 for dim, each in tuned.items()}
