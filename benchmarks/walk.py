"""From noise to latents with FLUX's transformer alone, at two sizes, in every way that is compared.

A walk is the whole of it: conditioning and all steps, batch 1, from the same noise, text and weights. Text
encoders and VAE are left out; they are the same small part in every way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux1.flux1 import positions_of
from flux_trt.exporter.families.flux1.params import flux_params
from flux_trt.plugins.rope import rope_tables
from flux_trt.runtime.backends.protocols import Backend
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.sampling import positions

ROOT = Path(__file__).parents[1]
NANO = ROOT / "examples" / "flux-nano"
Floats = npt.NDArray[np.float32]
Walk = Callable[[], Floats]
Velocity = Callable[[Floats, int], Floats]
"""The velocity at latents, at a step."""


@dataclass(frozen=True)
class Size:
    """A transformer and a picture: tokens are side x side + text."""

    name: str
    side: int
    text: int
    steps: int
    dims: Mapping[str, Any] | None = None
    """Of a random checkpoint; None: flux-nano."""

    @property
    def tokens(self) -> int:
        """Of the picture and the text together."""
        return self.side**2 + self.text


SIZES = {
    "flux-nano": Size("flux-nano", side=4, text=32, steps=12),
    "mid": Size(
        "mid",
        side=32,
        text=128,
        steps=4,
        dims={"heads": 8, "axes": (16, 24, 24), "depth": 2, "single": 9, "guidance": True, "seed": 5},
    ),
}


def checkpoint(size: Size, folder: Path) -> Path:
    """A diffusers folder of that size: flux-nano, or one with random weights, written to `folder`."""
    if size.dims is None:
        return NANO
    sys.path[:0] = [str(ROOT / "tests"), str(NANO)]
    from checkpoints import write_random

    return write_random(folder, **size.dims)


@dataclass(frozen=True)
class Task:
    """What every walk starts from; batch 1."""

    size: Size
    levels: Floats
    noise: Floats
    pooled: Floats
    text: Floats
    guidance: Floats
    positions: npt.NDArray[Any]
    """Of the text, then of the picture: [T + L, 3]."""

    @classmethod
    def of(cls, size: Size, source: Path) -> Task:
        """Seeded noise and text for the checkpoint at `source`."""
        p, rng = flux_params(open_checkpoint(str(source)).parts["transformer"]), np.random.default_rng(0)

        def draw(*shape: int) -> Floats:
            return rng.standard_normal(shape, dtype=np.float32)

        return cls(
            size,
            np.linspace(1, 0, size.steps + 1, dtype=np.float32),
            draw(1, size.side**2, p.out_channels),
            draw(1, p.vec_in_dim),
            draw(1, size.text, p.context_in_dim),
            np.full(1, 3.5, np.float32),
            positions.places(positions_of(p), size.text, [(size.side, size.side)]),
        )

    def euler(self, velocity: Velocity) -> Floats:
        """Walk with the Euler step on the host."""
        now = self.noise
        for step, stride in enumerate(np.diff(self.levels)):
            now = now + stride * velocity(now, step)
        return now

    def diffusers_inputs(self, now: Floats, step: int) -> dict[str, npt.NDArray[Any]]:
        """FluxTransformer2DModel's arguments, in its order, as FluxPipeline gives them."""
        ids = self.positions.astype(np.float32)
        return {
            "hidden_states": now,
            "encoder_hidden_states": self.text,
            "pooled_projections": self.pooled,
            "timestep": self.levels[step : step + 1],
            "img_ids": ids[self.size.text :],
            "txt_ids": ids[: self.size.text],
            "guidance": self.guidance,
        }


class Plain(nn.Module):
    """diffusers' transformer as a function of its tensors, for what traces or converts it."""

    def __init__(self, model: FluxTransformer2DModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The velocity; the inputs are those of `Task.diffusers_inputs`."""
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
        names += ("img_ids", "txt_ids", "guidance")
        return self.model(**dict(zip(names, inputs, strict=True)), return_dict=False)[0]


def plain(source: Path, dtype: torch.dtype = torch.float32) -> Plain:
    """diffusers' own transformer of a checkpoint."""
    model = FluxTransformer2DModel.from_pretrained(source / "transformer", torch_dtype=dtype)
    return Plain(model.eval())


def tensors(task: Task, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Example inputs of `Plain`."""
    inputs = task.diffusers_inputs(task.noise, 0)
    return tuple(
        torch.from_numpy(np.ascontiguousarray(value)).to(torch.float32 if "ids" in name else dtype)
        for name, value in inputs.items()
    )


def in_torch(module: Callable[..., torch.Tensor], task: Task, dtype: torch.dtype = torch.float32) -> Walk:
    """A walk in torch, the latents kept in float32."""
    fixed = tensors(task, dtype)
    times = torch.from_numpy(task.levels)

    @torch.inference_mode()
    def walk() -> Floats:
        now = torch.from_numpy(task.noise)
        for step in range(task.size.steps):
            inputs = (now.to(dtype), *fixed[1:3], times[step : step + 1].to(dtype), *fixed[4:])
            now = now + (times[step + 1] - times[step]) * module(*inputs).float()
        return now.numpy()

    return walk


def in_openvino(compiled: Any, task: Task) -> Walk:
    """A walk with diffusers' transformer as OpenVINO's own front end converted it."""
    request = compiled.create_infer_request()

    def velocity(now: Floats, step: int) -> Floats:
        values = task.diffusers_inputs(now, step).values()
        return request.infer([np.ascontiguousarray(value) for value in values], share_inputs=True)[0]

    return lambda: task.euler(velocity)


def ours(root: Path, backend: Backend, task: Task, record: bool = False) -> Walk:
    """A walk with a bundle's conditioner and denoiser.

    Args:
        root: of a bundle with at least these two stages.
        backend: what runs them.
        task: what to walk.
        record: on a GPU, launch all steps as one CUDA graph.

    Raises:
        BackendError: the backend cannot run the bundle.
    """
    manifest = Bundle.open(root, check=False).manifest
    conditioner, denoiser = (
        backend.load(root / manifest.graph(name).graph, name, manifest.graph(name))
        for name in ("conditioner", "denoiser")
    )
    cos, sin = rope_tables(task.positions, manifest.model.positions.axes, manifest.model.positions.theta)
    strides = np.broadcast_to(
        np.diff(task.levels)[:, None, None, None], (task.size.steps, *task.noise.shape[:2], 1)
    )
    tables = {"cos": backend.upload(cos), "sin": backend.upload(sin)}
    dt = backend.upload(np.ascontiguousarray(strides))
    wanted = {"timesteps": task.levels[:-1].copy(), "pooled": task.pooled, "text": task.text}
    if manifest.takes("guidance"):
        wanted["guidance"] = task.guidance
    pair = [backend.upload(np.empty_like(task.noise)) for _ in range(2)]
    start = backend.upload(task.noise)
    given = (
        {name: backend.upload(value) for name, value in conditioner.run(wanted).items()} if record else None
    )

    def steps(modulation: Any, context: Any) -> Any:
        now = start
        for step in range(task.size.steps):
            inputs = {"latents": now, "dt": dt[step], "modulation": modulation[step], "context": context}
            denoiser.run({**inputs, **tables}, into={"next_latents": pair[step % 2]})
            now = pair[step % 2]
        return now

    if not record:

        def walk() -> Floats:
            found = conditioner.run(wanted)
            return steps(found["modulation"], found["context"]).numpy().copy()

        return walk
    assert backend.gpu is not None
    assert given is not None
    steps(**given)
    launch = backend.gpu.record(lambda: steps(**given))

    def launched() -> Floats:
        conditioner.run(wanted, into=given)
        launch()
        return pair[(task.size.steps - 1) % 2].numpy().copy()

    return launched


def distance(found: Floats, exact: Floats) -> dict[str, float]:
    """Largest difference, and PSNR over the exact latents' range in decibels."""
    apart = found.astype(np.float64) - exact
    spread, error = float(exact.max() - exact.min()), float(np.sqrt(np.mean(apart**2)))
    decibels = 20 * np.log10(spread / error) if error else float("inf")
    return {
        "largest_difference": float(f"{np.abs(apart).max():.3g}"),
        "psnr_db": round(min(decibels, 200.0), 1),
    }
