"""Calibration: paint prompts with the reference model and watch what enters every layer.

The modules are those that are traced, in float32, and block after block gets its weights for all prompts
together (`stream`), so that memory holds one block and the prompts' states. A step needs the one before it:
every step reads all blocks once. After each step all that was seen is written beside the output, and a run
that was stopped goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import torch

from flux_trt.exporter.families.model import Model
from flux_trt.exporter.quantise.calibration import Calibration, Settings, Size
from flux_trt.exporter.quantise.reference import LATENTS, STEP, Reference
from flux_trt.exporter.quantise.state import load_state, save_state
from flux_trt.exporter.quantise.watch import Watch
from flux_trt.exporter.stamp import stamp
from flux_trt.exporter.written import write_whole
from flux_trt.runtime.bundle.manifest import StageName
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.pictures import latents
from flux_trt.runtime.progress import Progress, silent
from flux_trt.runtime.sampling import noise, schedule
from flux_trt.runtime.sampling.trajectory import Trajectory

SEED = 0
MOST_STEPS, LONGEST_SIDE = 12, 512


@dataclass(frozen=True)
class Painting:
    """What is painted to calibrate."""

    settings: Settings
    trajectory: Trajectory


def usual(model: Model) -> Settings:
    """What a CPU can bear of what a model paints: the built-in prompts, at most 12 steps, 512 pixels."""
    numbers = model.numbers()
    own = numbers.defaults
    return Settings(
        prompts=built_in_prompts(),
        width=min(own.width, LONGEST_SIDE),
        height=min(own.height, LONGEST_SIDE),
        steps=min(own.steps, MOST_STEPS),
        guidance=numbers.guidance.default if numbers.guidance.kind == "embedded" else None,
        seed=SEED,
    )


def settings_of(
    model: Model,
    *,
    prompts: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Settings:
    """What is to be painted from text alone, with the defaults of `usual`.

    Args:
        model: the checkpoint to calibrate, as its family reads it.
        prompts: none: a built-in list.
        size: (width, height) in pixels.
        steps: of each picture.
        guidance: for the variants that embed it.

    Raises:
        BuildError: a variant that does not paint from text alone, or guidance that the model does not have.
        RequestError: a size that is not possible.
    """
    numbers = model.numbers()
    if "generate" not in model.tasks(model.parts):
        raise BuildError(
            f"{model.title} paints from a picture; give pictures to flux-export calibrate with --jobs, and "
            "what it writes to build with --calibration"
        )
    embedded = numbers.guidance.kind == "embedded"
    if guidance is not None and not embedded:
        raise BuildError(f"{model.title} has no guidance; leave --guidance out")
    own = usual(model)
    width, height = size or (own.width, own.height)
    latents.grid(width, height, numbers.model.patch, numbers.sizes)
    return Settings(
        prompts=list(prompts) or own.prompts,
        width=width,
        height=height,
        steps=steps or own.steps,
        guidance=own.guidance if guidance is None else guidance,
        seed=SEED,
    )


def built_in_prompts() -> list[str]:
    """Prompts of many kinds: people, places, text, styles; short ones and long ones."""
    return (files("flux_trt.exporter.quantise") / "prompts.txt").read_text(encoding="utf-8").splitlines()


def from_text(model: Model, settings: Settings) -> Painting:
    """Text to pictures: noise of the seeds, at all levels."""
    numbers = model.numbers()
    grid = settings.height // numbers.model.patch, settings.width // numbers.model.patch
    seeds = tuple(range(settings.seed, settings.seed + len(settings.prompts)))
    levels = schedule.sigmas(numbers.schedule, settings.steps, grid[0] * grid[1])
    return Painting(settings, Trajectory(levels, noise.draw(numbers.model.noise, seeds, grid), (grid,)))


def calibrate(
    model: Model,
    painting: Painting,
    weights: Mapping[str, str],
    out: Path,
    *,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Calibration:
    """Calibrate a checkpoint and write `out`.

    Args:
        model: the checkpoint, with its text encoders and tokenizers.
        painting: from `from_text`, or from pictures.
        weights: what identifies its parts: `digest_of` for transformer and t5.
        out: the JSON file to write; the state of an unfinished run is kept beside it.
        device: a torch device.
        tell: called with a line for what a user should know.
        progress: told (what, bytes of weights read, bytes to read).

    Raises:
        CheckpointError: a part is missing.
        BuildError: activations that are not finite, or `out` cannot be written.
    """
    kept = out.with_name(f"{out.name}.state")
    settings = painting.settings
    facts = f"{sorted(weights.items())} {settings.model_dump_json()}"
    state = load_state(kept, facts)
    watch = Watch(state)
    reference = Reference(model, watch, device, progress)
    run = {*reference.texts, LATENTS, STEP}
    seen = {name: tensor for name, tensor in state.items() if name in run}

    def keep() -> None:
        save_state(kept, facts, {**seen, **watch.tensors()})

    with torch.no_grad(), torch.device(device):
        if not seen:
            seen |= reference.encode(settings.prompts)
            keep()
        if LATENTS in seen:
            tell(f"calibration goes on after step {int(seen[STEP])} of {painting.trajectory.steps}")
        for latents_now, done in reference.denoise(painting.trajectory, settings.guidance, dict(seen)):
            seen |= {LATENTS: latents_now, STEP: torch.tensor(done, device="cpu")}
            keep()
    if strange := [name for name, histogram in watch.seen.items() if not histogram.finite]:
        raise BuildError(f"the input of {strange[0]} is not finite in fp32; check the checkpoint")
    layers: dict[StageName, dict[str, Size]] = {}
    for name, histogram in watch.seen.items():
        stage, _, layer = name.partition("/")
        layers.setdefault(stage, {})[layer] = Size.of(histogram)
    found = Calibration(
        variant=model.variant,
        weights=dict(weights),
        settings=settings,
        layers=layers,
        tool=f"flux_trt {version('flux_trt')}",
        created=stamp(),
    )
    write_whole(out, found.dumps().encode())
    kept.unlink(missing_ok=True)
    return found
