"""A bundle's graphs become TensorRT engines: one child process each, and a folder that is whole or not there.

Needs neither PyTorch nor the checkpoint: a bundle that was exported elsewhere gets its engines on the machine
that will run them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flux_trt.exporter.engines import child
from flux_trt.exporter.engines.builder import Job
from flux_trt.exporter.engines.preflight import refuse_short, refuse_targets
from flux_trt.exporter.engines.profile import Shapes, default_shapes, profiles
from flux_trt.exporter.folder import digest, sync
from flux_trt.plugins.qk_norm_rope.contract import NAME as NODE
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.engine import FOLDER, PLAN, RECORD, Engine, Recipe, graph_digest
from flux_trt.runtime.bundle.flavour import FLAVOURS, Flavour, FlavourName
from flux_trt.runtime.bundle.manifest import GlueName, Precision, StageName
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.progress import Progress, silent

Tell = Callable[[str], None]
PLUGINS = {"native": [], "plugin": ["QKNormRope:1"]}


@dataclass(frozen=True)
class Options:
    """How engines are to be built; the shapes apart."""

    flavour: FlavourName = "tensorrt-rtx"
    capabilities: tuple[str, ...] = ()
    """Of the GPUs to build for; () is the present one."""
    rope: str = "native"
    opt_level: int | None = None
    """0 to 5; None leaves it to TensorRT."""
    weight_streaming: bool = False
    timing_cache: Path | None = None
    force: bool = False
    """Try even if memory or disk seem too small."""


def build_engines(
    root: Path,
    options: Options,
    shapes: Shapes | None = None,
    stages: Sequence[StageName] | None = None,
    tell: Tell = lambda line: None,
    progress: Progress = silent,
) -> list[Path]:
    """Build the engines of a bundle that are not there yet.

    Args:
        root: the bundle's directory; engines go into `engines/` in it.
        options: flavour, targets and the builder's settings.
        shapes: sizes, batch and references to serve. None: the bundle's default size, one at a time.
        stages: those of the bundle to build, None: all; the small glue graphs always are.
        tell: called with a line for every engine.
        progress: told (stage: phase, steps done, steps).

    Returns:
        The engines' folders.

    Raises:
        BundleError: the bundle is not whole.
        RequestError: a size that the bundle does not accept.
        BackendError: the flavour is not installed.
        BuildError: a target, disk, memory or graph that cannot work, or a build that failed.
    """
    bundle, flavour = Bundle.open(root), FLAVOURS[options.flavour]
    found = bundle.manifest
    chosen = list(found.stages) if stages is None else stages
    for stage in chosen:
        bundle.stage(stage)  # a partial bundle may lack it
    wanted = [*(name for name in found.stages if name in chosen), *found.glue]
    if options.rope == "plugin" and "denoiser" in chosen:
        _refuse_inlined(bundle.root / found.stages["denoiser"].graph)
    shapes = shapes or default_shapes(found)
    capabilities = check_targets(options, [found.graph(name).precision for name in wanted])
    recipes = [
        Recipe(
            stage=name,
            graph=graph_digest(found, name),
            precision=found.graph(name).precision,
            flavour=flavour.name,
            version=flavour.version(),
            capabilities=sorted(capabilities, key=float),
            profiles=profiles(found, name, shapes),
            plugins=PLUGINS[options.rope] if name == "denoiser" else [],
            opt_level=options.opt_level,
            weight_streaming=options.weight_streaming,
        )
        for name in wanted
    ]
    with _alone(root / FOLDER):
        missing = []
        for recipe in recipes:
            if _whole(root / recipe.folder, recipe, tell):
                tell(f"{recipe.stage}: {recipe.folder} is there already")
            else:
                missing.append(recipe)
        jobs = [_job(bundle, recipe, options) for recipe in missing]
        sizes = [sum(found.files[path].bytes for path in found.graph(r.stage).weights) for r in missing]
        if not options.force:
            refuse_short(list(zip(missing, sizes, strict=True)), root)
        for job in jobs:
            child.run(job, flavour, silent)  # TensorRT's opinion of all graphs, before the first build
        for job in jobs:
            _build(root, job, flavour, tell, progress)
    return [root / recipe.folder for recipe in recipes]


def _refuse_inlined(graph: Path) -> None:
    """Refuse the plugin for a graph that has no node for it: TensorRT would build it without a word.

    Raises:
        BuildError: naming the graph.
    """
    if NODE.encode() not in graph.read_bytes():
        raise BuildError(
            f"{graph} has no {NODE} for a plugin to take, as after --inline; use --rope native, or build the "
            "bundle without --inline"
        )


def check_targets(options: Options, precisions: Sequence[Precision]) -> tuple[str, ...]:
    """The compute capabilities to build for, once it is known that they can be built for.

    Raises:
        BackendError: the flavour is not installed.
        BuildError: a target that cannot be, or none.
    """
    flavour, present = FLAVOURS[options.flavour], present_capabilities()
    flavour.version()
    capabilities = options.capabilities or present
    refuse_targets(flavour, capabilities, precisions)
    if not flavour.cross_builds and capabilities != present:
        here = f"sm {present[0]}" if present else "no GPU"
        raise BuildError(
            f"{flavour.name} builds for the GPU that is present ({here}) and not for sm "
            f"{', '.join(capabilities)}; leave --sm out, or use --backend tensorrt-rtx"
        )
    if options.rope == "plugin" and not present:
        raise BuildError("engines with the RoPE plugin are built where there is a GPU; use --rope native")
    return capabilities


def present_capabilities() -> tuple[str, ...]:
    """The compute capability of the first GPU, or () where there is none."""
    try:
        from cuda.bindings import driver

        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return ()
    except (ImportError, RuntimeError):  # no cuda-python; no driver, as cuda.pathfinder says it
        return ()
    attribute = driver.CUdevice_attribute
    fault, device = driver.cuDeviceGet(0)
    if fault != driver.CUresult.CUDA_SUCCESS:
        return ()
    _, major = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    _, minor = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    return (f"{major}.{minor}",)


def keep_engines(old: Path, new: Path, digests: dict[StageName | GlueName, str]) -> None:
    """Link the engines of a bundle into the one that replaces it, where the graphs are the same."""
    for record in sorted((old / FOLDER).glob(f"*/{RECORD}")):
        try:
            recipe = Engine.model_validate_json(record.read_text(encoding="utf-8")).recipe
        except (OSError, ValueError):
            continue  # it would be refused in the new bundle too
        if digests.get(recipe.stage) == recipe.graph and recipe.folder == f"{FOLDER}/{record.parent.name}":
            shutil.copytree(record.parent, new / recipe.folder, copy_function=os.link)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold `folder` for one build at a time; what a killed one has left there is removed."""
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BuildError(f"another build is at work in {folder}; wait for it to end") from None
        for rest in folder.glob(".partial-*"):
            shutil.rmtree(rest, ignore_errors=True)
        yield


def _whole(folder: Path, recipe: Recipe, tell: Tell) -> bool:
    """Whether the engine is there and what was built; what is not is removed."""
    if not folder.exists():
        return False
    try:
        engine = Engine.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
        if engine.recipe == recipe and digest(folder / PLAN) == engine.plan:
            return True
    except (OSError, ValueError):
        pass
    tell(f"{recipe.stage}: {folder.name} is not what was built there; it is built again")
    shutil.rmtree(folder)
    return False


def _job(bundle: Bundle, recipe: Recipe, options: Options) -> Job:
    stage = bundle.manifest.graph(recipe.stage)
    cache = options.timing_cache
    return Job(
        graph=(bundle.root / stage.graph).resolve(),
        inputs=stage.inputs,
        recipe=recipe,
        plan=None,
        timing_cache=cache.resolve() if cache else None,
    )


def _build(root: Path, job: Job, flavour: Flavour, tell: Tell, progress: Progress) -> None:
    """One engine: built aside, flushed, and renamed when it is whole."""
    recipe, final, started = job.recipe, root / job.recipe.folder, time.perf_counter()
    aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=final.parent))
    try:
        built = child.run(job.model_copy(update={"plan": aside / PLAN}), flavour, progress)
        assert built.plan is not None
        (aside / RECORD).write_text(Engine(recipe=recipe, plan=built.plan).dumps(), encoding="utf-8")
        sync(aside / RECORD)
        aside.chmod(0o755)
        sync(aside)
        aside.rename(final)
        sync(final.parent)
    except OSError as fault:
        raise BuildError(f"cannot write {final} ({fault.strerror}); check the disk") from fault
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    targets, seconds = ", ".join(recipe.capabilities), time.perf_counter() - started
    tell(
        f"{recipe.stage}: {recipe.precision} engine for sm {targets}, {built.plan.bytes / 1e6:.1f} MB in "
        f"{seconds:.1f} s with {built.peak / 1e9:.2f} GB of memory"
    )
