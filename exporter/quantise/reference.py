"""The model that is calibrated, in float32: it encodes prompts and paints them, block by block.

Which stages there are and what goes into them is read off the stages: an input is what a stage before has put
out under that name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flux_trt.exporter.checkpoints.tokenizer import load_tokenizer
from flux_trt.exporter.families.model import Model
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.stage import Stage, parameters, skeleton
from flux_trt.exporter.quantise.stream import blocks_of, streamed
from flux_trt.exporter.quantise.watch import Watch
from flux_trt.runtime.bundle.flow import REFERENCES
from flux_trt.runtime.bundle.manifest import Runs
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.progress import Progress
from flux_trt.runtime.sampling import positions, schedule
from flux_trt.runtime.sampling.trajectory import Trajectory

AT_ONCE = 8192
"""Tokens that a block works on at once, about."""
LATENTS, STEP = "latents", "step"
Values = dict[str, Tensor]


class Reference:
    """All stages but the VAE's: pictures come encoded, in a trajectory, and are not shown."""

    def __init__(self, model: Model, watch: Watch, device: str, progress: Progress) -> None:
        """Check that the checkpoint has all that is needed.

        Raises:
            CheckpointError: a part is missing.
        """
        self._model, self._numbers = model, model.numbers()
        self._watch, self._device, self._progress = watch, device, progress
        names = [name for name, part in model.parts.items() if part != "vae"]
        self._plan = make_stages(model, "fp32", names)

    @property
    def texts(self) -> list[str]:
        """Names of what the text stages give."""
        return [tensor.name for stage in self._those("prompt") for tensor in stage.outputs]

    def encode(self, prompts: Sequence[str]) -> Values:
        """What the text stages make of the prompts, [P, ...] each; layers that fp8 takes are watched."""
        found: Values = {}
        for stage in self._those("prompt"):
            found |= self._encode(stage, prompts)
        return found

    def _encode(self, stage: Stage, prompts: Sequence[str]) -> Values:
        source = self._model.checkpoint
        if stage.name not in source.tokenizers:
            raise CheckpointError(f"{source.source} has no {stage.name} tokenizer; give --text-encoders")
        with tempfile.TemporaryDirectory() as folder:
            padding = self._numbers.padding[stage.name]
            spec = load_tokenizer(source.tokenizers[stage.name], stage.name, padding).write(Path(folder))
            seen = {n: torch.from_numpy(v) for n, v in Window(Path(folder), spec).of(prompts).inputs.items()}
        module = streamed(stage, self._device)
        if stage.in_fp8:
            self._watch.layers(stage, module)
        size, parts = _bytes(stage), []
        rows, length = seen["ids"].shape
        batches = torch.arange(rows, device="cpu").split(max(1, AT_ONCE // length))
        for batch in batches:
            found = _call(
                stage, module, {name: value[batch].to(self._device) for name, value in seen.items()}
            )
            parts.append({name: value.cpu() for name, value in found.items()})
            self._progress(f"calibrate {stage.name}", len(parts) * size, len(batches) * size)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def denoise(
        self, trajectory: Trajectory, guidance: float | None, state: Mapping[str, Tensor]
    ) -> Iterator[tuple[Tensor, int]]:
        """Walk a trajectory from where `state` is: the latents, and the number of steps done."""
        levels, prompts, steps = trajectory.levels, len(trajectory.start), trajectory.steps
        known = {name: state[name].to(self._device) for name in self.texts}
        times = {
            name: torch.from_numpy(told(levels, self._numbers.schedule)).to(self._device)
            for name, told in (("timesteps", schedule.timesteps), ("targets", schedule.targets))
        }
        rule, tokens = self._numbers.model.positions, self._tokens(known)
        tables = positions.rotations(rule, tokens, trajectory.grids)
        turns = *tables, *positions.rotations(rule, tokens, [])
        known |= {
            name: torch.from_numpy(table).to(self._device)
            for name, table in zip(("cos", "sin", "text_cos", "text_sin"), turns, strict=True)
        }
        idle = [stage for stage in self._plan if any(each.name == REFERENCES for each in stage.inputs)]
        for tensor in (each for stage in idle for each in stage.outputs):
            dims = {"batch": prompts, "reference": 0}  # no reference pictures are painted from
            known[tensor.name] = torch.zeros(
                [dim if isinstance(dim, int) else dims[dim] for dim in tensor.dims]
            )
        if guidance is not None:
            known["guidance"] = torch.full((prompts,), guidance)
        if trajectory.condition is not None:
            known["condition"] = torch.from_numpy(trajectory.condition).to(self._device)
        now, first = state.get(LATENTS), int(state.get(STEP, 0))
        if now is None:
            now = torch.from_numpy(trajectory.start).contiguous()
        # Reference tokens stay as they are.
        moving = (torch.arange(now.shape[1]) < trajectory.target)[:, None]
        before = [(stage, streamed(stage, self._device)) for stage in self._those("schedule")]
        (denoiser,) = (stage for stage in self._those("step") if stage not in idle)
        told = _Told(denoiser, self._watch, self._progress, first, steps)
        denoise = streamed(denoiser, self._device, max(1, AT_ONCE // len(tables[0])), told)
        for stage, module in (*before, (denoiser, denoise)):
            self._watch.layers(stage, module)
        made: Values = {}
        for step in range(first, steps):
            given = known | {name: each[step : step + 1] for name, each in times.items()}
            for stage, module in before:
                if step == first or "steps" in stage.dims:
                    made |= _call(stage, module, given | made)
            given |= {
                tensor.name: _at_once(tensor.dims, made[tensor.name])
                for stage, _ in before
                for tensor in stage.outputs
            }
            given["dt"] = (float(levels[step + 1] - levels[step]) * moving).expand(prompts, -1, -1)
            with self._watch:
                now = _call(denoiser, denoise, given | {LATENTS: now.to(self._device)})["next_latents"].cpu()
            yield now, step + 1
        told.done()

    def _tokens(self, known: Mapping[str, Tensor]) -> int:
        """Text tokens of a prompt: the dim of that name, in whatever the text stages give."""
        outputs = [tensor for stage in self._those("prompt") for tensor in stage.outputs]
        return next(
            known[each.name].shape[each.dims.index("text")] for each in outputs if "text" in each.dims
        )

    def _those(self, runs: Runs) -> list[Stage]:
        return [stage for stage in self._plan if stage.runs == runs]


class _Told:
    """Tells the watch which block runs, and the progress how many bytes were read."""

    def __init__(self, stage: Stage, watch: Watch, progress: Progress, first: int, steps: int) -> None:
        blocks = len(blocks_of(stage, skeleton(stage)))
        self._what, self._size = f"calibrate {stage.name}", _bytes(stage) // blocks
        self._watch, self._progress = watch, progress
        self._begun, self._blocks = first * blocks, steps * blocks

    def __call__(self, block: str) -> None:
        self._watch.block = block
        self._progress(self._what, self._begun * self._size, self._blocks * self._size)
        self._begun += 1

    def done(self) -> None:
        """All steps are done."""
        self._progress(self._what, self._blocks * self._size, self._blocks * self._size)


def _call(stage: Stage, module: nn.Module, known: Mapping[str, Tensor]) -> Values:
    """Run a stage's module on what is known by name."""
    found = module(*(known[tensor.name] for tensor in stage.inputs))
    values = found if isinstance(found, tuple) else (found,)
    return {tensor.name: value for tensor, value in zip(stage.outputs, values, strict=True)}


def _at_once(dims: Sequence[int | str], value: Tensor) -> Tensor:
    """What was made for one step alone, without the dim of steps."""
    return value[0] if dims[0] == "steps" else value


def _bytes(stage: Stage) -> int:
    """Of the weights that a stage reads when it runs once."""
    names = {name for ours in parameters(stage, skeleton(stage)) for name in stage.recipes[ours].names}
    return sum(stage.tensors[name].nbytes for name in names)
