"""A bundle's graphs become TensorRT engines: one child process each, and a folder that is whole or not there.

Needs neither PyTorch nor the checkpoint: a bundle that was exported elsewhere gets its engines on the machine
that will run them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from flux_trt.exporter.engines import child
from flux_trt.exporter.engines.builder import Job
from flux_trt.exporter.engines.preflight import Kind, refuse_short, refuse_targets
from flux_trt.exporter.engines.profile import Shapes, default_shapes, profiles
from flux_trt.exporter.folder import digest, lock_of, remove
from flux_trt.exporter.lock import alone
from flux_trt.exporter.place import refuse_odd_name
from flux_trt.exporter.written import cannot_write, link_or_copy, sync, write_file
from flux_trt.plugins.qk_norm_rope.contract import NAME as NODE
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.engine import FOLDER, PLAN, RECORD, Engine, Recipe, graph_digest
from flux_trt.runtime.bundle.flavour import FLAVOURS, Flavour, FlavourName
from flux_trt.runtime.bundle.manifest import GlueName, StageName
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.progress import Progress, silent

Tell = Callable[[str], None]
ELSEWHERE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Faults of the place: engines need not be in the bundle."""
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
    into: Path | None = None,
) -> list[Path]:
    """Build the engines of a bundle that are not there yet.

    Args:
        root: the bundle's directory.
        options: flavour, targets and the builder's settings.
        shapes: sizes, batch and references to serve. None: the bundle's default size, one at a time.
        stages: those of the bundle to build, None: all; the small glue graphs always are.
        tell: called with a line for every engine.
        progress: told (stage: phase, steps done, steps).
        into: the folder that they go into, which may have other bundles' too; None: `engines/` in the bundle,
            which need not be writable else.

    Returns:
        The engines' folders.

    Raises:
        BundleError: the bundle is not whole.
        RequestError: a size that the bundle does not accept.
        BackendError: the flavour is not installed.
        BuildError: a target, disk, memory or graph that cannot work, or a build that failed.
    """
    refuse_odd_name(root.resolve())
    refuse_odd_name(into.resolve() if into else root)
    if options.timing_cache and not options.timing_cache.absolute().parent.is_dir():
        raise BuildError(f"no folder {options.timing_cache.parent} for --timing-cache; create it first")
    bundle, flavour = Bundle.open(root), FLAVOURS[options.flavour]
    found = bundle.manifest
    chosen = list(found.stages) if stages is None else stages
    for stage in chosen:
        bundle.stage(stage)  # a partial bundle may lack it
    wanted = [*(name for name in found.stages if name in chosen), *found.glue]
    if options.rope == "plugin" and "denoiser" in chosen:
        _refuse_inlined(bundle.root / found.stages["denoiser"].graph)
    shapes = shapes or default_shapes(found)
    # Glue multiplies no matrices: its float32 is no question of the target.
    capabilities = check_targets(options, [found.graph(name).kind for name in wanted if name in chosen])
    recipes = [
        Recipe(
            stage=name,
            graph=graph_digest(found, name),
            precision=found.graph(name).precision,
            flavour=flavour.name,
            version=flavour.version(),
            capabilities=sorted(set(capabilities), key=float),
            profiles=profiles(found, name, shapes),
            plugins=PLUGINS[options.rope] if name == "denoiser" else [],
            opt_level=options.opt_level,
            weight_streaming=options.weight_streaming,
            builder=_builder(),
        )
        for name in wanted
    ]
    place = into if into is not None else root / FOLDER
    try:
        return _build_missing(bundle, place, recipes, flavour, options, tell, progress)
    except OSError as fault:
        raise _unwritable(place, fault) from fault


def _build_missing(
    bundle: Bundle,
    place: Path,
    recipes: Sequence[Recipe],
    flavour: Flavour,
    options: Options,
    tell: Tell,
    progress: Progress,
) -> list[Path]:
    """The folders of engines by these recipes, those that are not there yet built."""
    found = bundle.manifest
    with _alone(bundle.root, place, tell):
        missing = []
        for recipe in recipes:
            if _whole(place / recipe.name, recipe, tell):
                tell(f"{recipe.stage}: {place / recipe.name} is there already")
            else:
                missing.append(recipe)
        jobs = [_job(bundle, recipe, options) for recipe in missing]
        sizes = [sum(found.files[path].bytes for path in found.graph(r.stage).weights) for r in missing]
        if not options.force:
            refuse_short(list(zip(missing, sizes, strict=True)), place)
        for job in jobs:
            child.run(job, flavour, silent)  # TensorRT's opinion of all graphs, before the first build
        for job in jobs:
            _build(bundle, place, job, flavour, tell, progress)
    return [place / recipe.name for recipe in recipes]


def _unwritable(place: Path, fault: OSError) -> BuildError:
    where = Path(fault.filename) if isinstance(fault.filename, str) else place
    said = str(cannot_write(where, fault))
    return BuildError(f"{said}, with --engines DIR" if fault.errno in ELSEWHERE else said)


@cache
def _builder() -> str:
    """What a plan is made by beside TensorRT: our builder, the plugins, and Polygraphy."""
    here = Path(__file__).parent
    plugins = here.parents[1] / "plugins"
    files = [here / "builder.py", here / "profile.py", *sorted(plugins.rglob("*.py"))]
    code = hashlib.sha256("".join(digest(path).sha256 for path in files).encode()).hexdigest()
    return f"{code[:16]} polygraphy {version('polygraphy')}"


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


def check_targets(options: Options, kinds: Sequence[Kind]) -> tuple[str, ...]:
    """The compute capabilities to build for, once it is known that they can be built for.

    Raises:
        BackendError: the flavour is not installed.
        BuildError: a target that cannot be, or none.
    """
    flavour, present = FLAVOURS[options.flavour], present_capabilities()
    flavour.version()
    capabilities = options.capabilities or present
    refuse_targets(flavour, capabilities, kinds)
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
            (new / recipe.folder).mkdir(parents=True)
            for name in (RECORD, PLAN):
                link_or_copy(record.parent / name, new / recipe.folder / name)


@contextmanager
def _alone(root: Path, place: Path, tell: Tell) -> Iterator[None]:
    """Hold a bundle, or the folder elsewhere that its engines go into, for one build at a time.

    What a killed build has left there is removed.
    """
    place.mkdir(parents=True, exist_ok=True)
    inside = place.resolve() == (root / FOLDER).resolve()
    lock = lock_of(root.resolve())
    if not inside or not os.access(lock.parent, os.W_OK):
        lock = place / ".lock"
    with alone(lock, root if inside else place, tell) as held:
        for rest in place.glob(".partial-*") if held else ():
            remove(rest)
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


def _build(bundle: Bundle, place: Path, job: Job, flavour: Flavour, tell: Tell, progress: Progress) -> None:
    """One engine: built aside, compared with the disk, and renamed when it is whole."""
    recipe, final, started = job.recipe, place / job.recipe.name, time.perf_counter()
    aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=final.parent))
    try:
        built = child.run(job.model_copy(update={"plan": aside / PLAN}), flavour, progress)
        assert built.plan is not None
        if (there := (aside / PLAN).stat().st_size) != built.plan.bytes or not there:
            raise OSError(errno.EIO, f"{built.plan.bytes} bytes were built and {there} are there", str(final))
        if graph_digest(manifest.read(bundle.root), recipe.stage) != recipe.graph:
            raise BuildError(f"{bundle.root} was built anew in the meantime; build its engines again")
        write_file(aside / RECORD, Engine(recipe=recipe, plan=built.plan).dumps().encode())
        aside.chmod(0o755)
        sync(aside)
        aside.rename(final)
        sync(final.parent)
    except OSError as fault:
        inside = Path(fault.filename).name if isinstance(fault.filename, str) else ""
        raise OSError(fault.errno, fault.strerror, str(final / inside)) from None
    finally:
        remove(aside)
    for line in built.warnings:
        tell(f"warning: {line}")
    _supersede(place, recipe, tell)
    targets, seconds = ", ".join(recipe.capabilities), time.perf_counter() - started
    tell(
        f"{recipe.stage}: {recipe.precision} engine for sm {targets}, {built.plan.bytes / 1e6:.1f} MB in "
        f"{seconds:.1f} s with {built.peak / 1e9:.2f} GB of memory"
    )


def _supersede(place: Path, recipe: Recipe, tell: Tell) -> None:
    """Remove the engines that differ from a new one in nothing but what built them."""
    for record in sorted(place.glob(f"{recipe.stage}-*/{RECORD}")):
        try:
            other = Engine.model_validate_json(record.read_text(encoding="utf-8")).recipe
        except (OSError, ValueError):
            continue
        if other != recipe and other.model_copy(update={"builder": recipe.builder}) == recipe:
            remove(record.parent)
            tell(f"{recipe.stage}: {record.parent.name} removed; an older builder made it")
