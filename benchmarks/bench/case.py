"""A case of a bundle: a size, and how it is painted, with the bundle's defaults filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flux_trt.bench.job import Job
from flux_trt.runtime.backends.protocols import Device
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.texts import longest

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def job(
    bundle: Bundle,
    size: tuple[int, int],
    steps: int | None,
    batch: int,
    guidance: float | None,
    device: Device,
    checkpoint: str | None,
    threads: int | None = None,
    prompts: Sequence[str] = ("",),
) -> Job:
    """A case, with the bundle's defaults filled in; its text is as long as the longest of the prompts.

    Raises:
        RequestError: something that the bundle cannot do.
    """
    manifest = bundle.manifest
    asked = Request.of(manifest, [""] * batch, size=size, steps=steps, guidance=guidance, batch=batch)
    built_from = manifest.provenance.checkpoint
    precision, base = manifest.stages["denoiser"].kind if "denoiser" in manifest.stages else ("fp32", None)
    return Job(
        bundle=str(bundle.root),
        checkpoint=checkpoint or (built_from if Path(built_from).is_dir() else None),
        device=device,
        width=asked.width,
        height=asked.height,
        steps=asked.steps,
        guidance=asked.guidance,
        batch=batch,
        text_tokens=longest(bundle, prompts) or (manifest.text.most if manifest.text else 0),
        dtype=DTYPES[base or precision],
        threads=threads,
    )
