"""Calibration: paint prompts with the reference model and watch what enters every layer.

The modules are those that are traced, in float32, and block after block gets its weights for all prompts
together (`stream`), so that memory holds one block and the prompts' states. A step needs the one before it:
every step reads all blocks once. After each step all that was seen is written beside the output, and a run
that was stopped goes on from there.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint
from flux_trt.exporter.checkpoints.tokenizer import export_tokenizer
from flux_trt.exporter.describe import LARGEST_SIDE, noise_of, picture, positions_of, scheduler
from flux_trt.exporter.families.fit import parameters
from flux_trt.exporter.families.flux1.params import flux_params
from flux_trt.exporter.families.flux1.stages import Stage, make_stages, skeleton
from flux_trt.exporter.families.flux1.variants import VARIANTS, Variant
from flux_trt.exporter.folder import write_whole
from flux_trt.exporter.quantise.calibration import Calibration, Settings, Size
from flux_trt.exporter.quantise.state import load_state, save_state
from flux_trt.exporter.quantise.stream import streamed
from flux_trt.exporter.quantise.watch import Watch
from flux_trt.runtime.bundle.manifest import Sizes, StageName
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.errors import BuildError, CheckpointError
from flux_trt.runtime.pictures import latents
from flux_trt.runtime.progress import Progress, silent
from flux_trt.runtime.sampling import noise, positions, schedule

STAGES: tuple[StageName, ...] = ("clip", "t5", "conditioner", "denoiser")
SEED = 0
MOST_STEPS, LONGEST_SIDE = 12, 512
AT_ONCE = 8192
"""Tokens that a block works on at once, about."""
RUN = ("pooled", "text", "latents", "step")


def settings_of(
    checkpoint: Checkpoint,
    kind: Variant,
    *,
    prompts: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Settings:
    """What is to be painted, with defaults that a CPU can bear: at most 12 steps and 512 pixels.

    Args:
        checkpoint: to calibrate.
        kind: its variant.
        prompts: none: a built-in list.
        size: (width, height) in pixels.
        steps: of each picture.
        guidance: for the variants that embed it.

    Raises:
        BuildError: a variant that does not paint from text alone, or guidance that the model does not have.
        RequestError: a size that is not possible.
    """
    if kind.in_channels != VARIANTS["dev"].in_channels:
        raise BuildError(
            f"FLUX.1 {kind.name} paints from a control picture, which calibration cannot take yet; "
            "build it with --precision bf16, fp16 or fp32"
        )
    if guidance is not None and not kind.guidance_embed:
        raise BuildError(f"FLUX.1 {kind.name} has no guidance; leave --guidance out")
    patch, side = picture(checkpoint)
    width, height = size or (min(side, LONGEST_SIDE),) * 2
    latents.grid(width, height, patch, Sizes(smallest=patch, largest=LARGEST_SIDE))
    return Settings(
        prompts=list(prompts) or built_in_prompts(),
        width=width,
        height=height,
        steps=steps or min(kind.steps, MOST_STEPS),
        guidance=(kind.guidance if guidance is None else guidance) if kind.guidance_embed else None,
        seed=SEED,
    )


def built_in_prompts() -> list[str]:
    """Prompts of many kinds: people, places, text, styles; short ones and long ones."""
    return (files("flux_trt.exporter.quantise") / "prompts.txt").read_text(encoding="utf-8").splitlines()


def calibrate(
    checkpoint: Checkpoint,
    kind: Variant,
    settings: Settings,
    weights: Mapping[str, str],
    out: Path,
    *,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Calibration:
    """Calibrate a checkpoint and write `out`.

    Args:
        checkpoint: with its text encoders and tokenizers.
        kind: its variant.
        settings: from `settings_of`.
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
    facts = f"{sorted(weights.items())} {settings.model_dump_json()}"
    state = load_state(kept, facts)
    watch, seen = Watch(state), {name: state[name] for name in RUN if name in state}
    model = _Reference(checkpoint, kind, watch, device, progress)

    def keep() -> None:
        save_state(kept, facts, {**seen, **watch.tensors()})

    with torch.no_grad(), torch.device(device):
        if "text" not in seen:
            seen |= model.encode(settings.prompts)
            keep()
        if "latents" in seen:
            tell(f"calibration goes on after step {int(seen['step'])} of {settings.steps}")
        for latents_now, done in model.denoise(settings, dict(seen)):
            seen |= {"latents": latents_now, "step": torch.tensor(done, device="cpu")}
            keep()
    if strange := [name for name, histogram in watch.seen.items() if not histogram.finite]:
        raise BuildError(f"the input of {strange[0]} is not finite in fp32; check the checkpoint")
    layers: dict[StageName, dict[str, Size]] = {}
    for name, histogram in watch.seen.items():
        stage, _, layer = name.partition("/")
        layers.setdefault(stage, {})[layer] = Size.of(histogram)
    found = Calibration(
        variant=kind.name,
        weights=dict(weights),
        settings=settings,
        layers=layers,
        tool=f"flux_trt {version('flux_trt')}",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    write_whole(out, found.dumps().encode())
    kept.unlink(missing_ok=True)
    return found


class _Reference:
    """The model being calibrated, in float32, block by block."""

    def __init__(
        self, checkpoint: Checkpoint, kind: Variant, watch: Watch, device: str, progress: Progress
    ) -> None:
        self.checkpoint, self.kind = checkpoint, kind
        self.watch, self.device, self.progress = watch, device, progress
        self.plan = {stage.name: stage for stage in make_stages(checkpoint, "fp32", STAGES)}

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts' pooled [P, V] from CLIP and text [P, T, C] from T5, whose layers are watched."""
        return {
            "pooled": self._encode("clip", 77, prompts),
            "text": self._encode("t5", self.kind.text_length, prompts),
        }

    def _encode(self, name: StageName, limit: int, prompts: Sequence[str]) -> Tensor:
        if name not in self.checkpoint.tokenizers:
            raise CheckpointError(f"{self.checkpoint.source} has no {name} tokenizer; give --text-encoders")
        with tempfile.TemporaryDirectory() as folder:
            spec = export_tokenizer(self.checkpoint.tokenizers[name], Path(folder), name, limit)
            ids = Window(Path(folder), spec).of(prompts).ids
        module = streamed(self.plan[name], self.device)
        if name == "t5":
            self.watch.layers(self.plan[name], module)
        size, parts = _bytes(self.plan[name]), []
        batches = torch.from_numpy(ids).split(max(1, AT_ONCE // ids.shape[1]))
        for batch in batches:
            parts.append(module(batch.to(self.device)).cpu())
            self.progress(f"calibrate {name}", len(parts) * size, len(batches) * size)
        return torch.cat(parts)

    def denoise(self, settings: Settings, state: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, int]]:
        """Paint all prompts together from where `state` is: the latents, and the number of steps done."""
        params, prompts = flux_params(self.checkpoint.parts["transformer"]), len(settings.prompts)
        patch, _ = picture(self.checkpoint)
        grid = settings.height // patch, settings.width // patch
        levels = schedule.sigmas(scheduler(self.checkpoint, self.kind), settings.steps, grid[0] * grid[1])
        times = torch.from_numpy(schedule.timesteps(levels)).to(self.device)
        pooled, text = state["pooled"].to(self.device), state["text"].to(self.device)
        tables = positions.rotations(positions_of(params), text.shape[1], [grid])
        cos, sin = (torch.from_numpy(table).to(self.device) for table in tables)
        now, first = state.get("latents"), int(state.get("step", 0))
        if now is None:
            seeds = tuple(range(settings.seed, settings.seed + prompts))
            now = torch.from_numpy(noise.draw(noise_of(params), seeds, grid))
        guidance = None if settings.guidance is None else torch.full((prompts,), settings.guidance)
        blocks = params.depth + params.depth_single_blocks
        block_size, begun = _bytes(self.plan["denoiser"]) // blocks, first * blocks

        def before(block: str) -> None:
            nonlocal begun
            self.watch.block = block
            self.progress("calibrate denoiser", begun * block_size, settings.steps * blocks * block_size)
            begun += 1

        conditioner = streamed(self.plan["conditioner"], self.device)
        denoiser = streamed(self.plan["denoiser"], self.device, max(1, AT_ONCE // len(cos)), before)
        self.watch.layers(self.plan["conditioner"], conditioner)
        self.watch.layers(self.plan["denoiser"], denoiser)
        for step in range(first, settings.steps):
            modulation, context = conditioner(times[step : step + 1], pooled, text, guidance)
            dt = torch.full((prompts, now.shape[1], 1), float(levels[step + 1] - levels[step]))
            with self.watch:
                now, _ = denoiser(now.to(self.device), dt, context, modulation[0], cos, sin)
            now = now.cpu()
            yield now, step + 1
        self.progress("calibrate denoiser", *(settings.steps * blocks * block_size,) * 2)


def _bytes(stage: Stage) -> int:
    """Of the weights that a stage reads when it runs once."""
    names = {name for ours in parameters(stage, skeleton(stage)) for name in stage.recipes[ours].names}
    return sum(stage.tensors[name].nbytes for name in names)
