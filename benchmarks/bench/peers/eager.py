"""diffusers' FluxPipeline, as it is, with torch.compile, or with its modules swapped for converted ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from flux_trt.bench.errors import BenchError
from flux_trt.bench.job import Job, Pictures, as_pictures, files_bytes
from flux_trt.bench.peers.swapped import Convert, swap
from flux_trt.runtime.backends.cpus import refuse_threads


class Diffusers:
    """FluxPipeline on the job's checkpoint."""

    def __init__(
        self, job: Job, convert: Convert | None = None, change: Callable[[Any], None] | None = None
    ) -> None:
        """Load the pipeline.

        Args:
            job: what is to be painted.
            convert: makes another runtime's function of each module.
            change: what else to do to the pipeline.

        Raises:
            FluxTrtError: no checkpoint, or a device that this peer does not have; threads for a GPU.
        """
        if job.checkpoint is None:
            raise BenchError("peers paint from the checkpoint, which is not known; give it with --checkpoint")
        self.device = _device(job)
        if job.threads is not None:
            refuse_threads(None if self.device == "cpu" else job.threads, "diffusers")
            torch.set_num_threads(job.threads)
        if convert and self.device != "cpu":
            raise BenchError("converted peers run on a CPU only; give --device cpu or leave them out")
        self._job = job
        self._pipe = load(job, self.device)
        start = time.perf_counter()
        if convert:
            swap(self._pipe, job, convert)
        if change:
            change(self._pipe)
        self.convert_s = time.perf_counter() - start if convert else 0.0
        self.bytes_loaded = files_bytes(job.checkpoint)

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        """A batch of pictures, each from a CPU generator of its own seed."""
        job = self._job
        with torch.inference_mode():
            found = self._pipe(
                list(prompts),
                width=job.width,
                height=job.height,
                num_inference_steps=job.steps,
                guidance_scale=job.guidance or 0.0,
                max_sequence_length=job.text_tokens,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="np",
            )
        return as_pictures(found.images)

    def close(self) -> None:
        """Let the modules go."""
        del self._pipe


def compiled(job: Job) -> Diffusers:
    """With the transformer and the VAE's decoder compiled by inductor, for the job's shapes."""

    def change(pipe: Any) -> None:
        mode = {"mode": "max-autotune"} if pipe.device.type == "cuda" else {}
        pipe.transformer.compile(dynamic=False, **mode)
        pipe.vae.decoder.compile(dynamic=False, **mode)

    return Diffusers(job, change=change)


def load(job: Job, device: str) -> Any:
    """FluxPipeline in the job's dtype; a folder is never looked for on the hub."""
    from diffusers import FluxPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    assert job.checkpoint is not None
    local = Path(job.checkpoint).is_dir()
    dtype = torch.float32 if device == "cpu" else getattr(torch, job.dtype)
    try:
        pipe = FluxPipeline.from_pretrained(job.checkpoint, dtype=dtype, local_files_only=local)
    except (OSError, ValueError) as fault:
        raise BenchError(
            f"diffusers cannot load {job.checkpoint} ({str(fault).splitlines()[0]}); "
            f"give a diffusers folder or a hub id with --checkpoint"
        ) from None
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _device(job: Job) -> str:
    there = torch.cuda.is_available()
    if job.device == "cuda" and not there:
        raise BenchError("torch finds no GPU; give --device cpu")
    return "cuda" if there and job.device != "cpu" else "cpu"
