"""Scores a checkpoint or an exported bundle: the checker's rates on prompts and edits never trained on."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from nano.checker import Rates, check
from nano.edit import Edit, test_edits
from nano.picture import SIDE, Jitter, draw, psnr
from nano.scene import sample_split, test_prompts

Paint = Callable[[list[str]], list[Image.Image]]
Change = Callable[[list[str], list[Image.Image]], list[Image.Image]]
BATCH = 32
MAX_LENGTH = 32  # T5 tokens


def main(arguments: list[str] | None = None) -> None:
    """Paint, judge, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="a diffusers folder, or a bundle of flux-export")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument(
        "--edits",
        type=int,
        default=128,
        help="reference edits to score (checkpoints only; 0: neither edits nor autoencoder)",
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="arithmetic of a checkpoint"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first pictures here")
    options = parser.parse_args(arguments)

    is_bundle = (options.path / "bundle.json").exists()
    settings = {"steps": options.steps, "guidance": options.guidance, "seed": options.seed}
    paint, change = bundle_painter(options.path, **settings), None
    if not is_bundle:
        paint, change = checkpoint_painters(options.path, dtype=options.dtype, **settings)
    prompts = test_prompts(options.prompts)
    pictures = paint(prompts)
    reports = [check(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    result = {"text_to_image": dataclasses.asdict(Rates.of(reports))}
    for count, name in ((1, "one_object"), (2, "two_objects")):
        some = [report for report in reports if len(report.objects) == count]
        result[name] = dataclasses.asdict(Rates.of(some))
    if change and options.edits:
        edits = test_edits(options.edits)
        result["edits"] = score_edits(edits, change)
        result["autoencoder"] = score_autoencoder(options.path)
    if options.sheet:
        contact_sheet(pictures[:32]).save(options.sheet)
    result |= {"settings": settings | {"dtype": options.dtype}, **provenance()}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def checkpoint_painters(
    folder: Path, dtype: str, steps: int, guidance: float, seed: int
) -> tuple[Paint, Change]:
    """Text-to-image with FluxPipeline and edits with FluxKontextPipeline, both of diffusers."""
    import torch
    from diffusers import FluxKontextPipeline

    from nano.bundle import load

    pipe = load(folder, getattr(torch, dtype))
    kontext = FluxKontextPipeline(**pipe.components)
    kontext.set_progress_bar_config(disable=True)
    shared = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "guidance_scale": guidance}
    shared |= {"max_sequence_length": MAX_LENGTH}

    def paint(prompts: list[str]) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), BATCH):
            generator = torch.Generator().manual_seed(seed + start)
            pictures += pipe(prompts[start : start + BATCH], generator=generator, **shared).images
        return pictures

    def change(instructions: list[str], references: list[Image.Image]) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for start in range(0, len(instructions), BATCH):
            part = slice(start, start + BATCH)
            generator = torch.Generator().manual_seed(seed + start)
            pictures += kontext(
                references[part],
                instructions[part],
                generator=generator,
                max_area=SIDE * SIDE,
                _auto_resize=False,  # else the reference grows to one of FLUX.1 Kontext's megapixel sizes
                **shared,
            ).images
        return pictures

    return paint, change


def bundle_painter(folder: Path, steps: int, guidance: float, seed: int) -> Paint:
    """Text-to-image with the exported graphs, without PyTorch."""

    def paint(prompts: list[str]) -> list[Image.Image]:
        from flux_trt.runtime import Pipeline

        with Pipeline.load(folder) as pipe:
            return pipe.generate(
                prompts, size=(SIDE, SIDE), steps=steps, guidance=guidance, seed=seed, batch=BATCH
            )

    return paint


def score_edits(edits: list[Edit], change: Change, seed: int = 7) -> dict[str, float | int]:
    """Shares of edits whose change was made, rest was kept, and both; PSNR to the true result, dB."""
    rng = np.random.default_rng(seed)
    jitters = [Jitter.sample(rng) for _ in edits]
    references = [
        Image.fromarray(draw(edit.source, jitter)) for edit, jitter in zip(edits, jitters, strict=True)
    ]
    pictures = change([edit.instruction for edit in edits], references)
    made, kept = [], []
    for edit, picture in zip(edits, pictures, strict=True):
        report = check(picture, edit.target)
        marks = {"background": report.background}
        for index, verdict in enumerate(report.objects):
            marks |= {f"{name} {index}": getattr(verdict, name) for name in ("colour", "shape", "place")}
        made.append(marks.pop("background" if edit.index is None else f"{edit.kind} {edit.index}"))
        kept.append(all(marks.values()) and len(report.found) == len(report.objects))
    both = [first and second for first, second in zip(made, kept, strict=True)]
    exact = np.stack([draw(edit.target, jitter) for edit, jitter in zip(edits, jitters, strict=True)])
    near = np.mean(psnr(np.stack([np.asarray(picture) for picture in pictures]), exact))
    rates = {"made": np.mean(made), "kept": np.mean(kept), "both": np.mean(both), "psnr": near}
    return {name: round(float(value), 4) for name, value in rates.items()} | {"edits": len(edits)}


def score_autoencoder(folder: Path, count: int = 256, seed: int = 11) -> dict[str, float | int]:
    """Rates on reconstructions of held-out pictures, and their PSNR, dB: the ceiling of the other scores."""
    import torch
    from diffusers import AutoencoderKL

    from nano.vae import to_pictures, to_tensor

    vae = AutoencoderKL.from_pretrained(folder / "vae").float()
    rng = np.random.default_rng(seed)
    scenes = [sample_split(rng, held_out=True) for _ in range(count)]
    pictures = np.stack([draw(scene, Jitter.sample(rng)) for scene in scenes])
    parts = []
    with torch.no_grad():
        for start in range(0, count, BATCH):
            latents = vae.encode(to_tensor(pictures[start : start + BATCH], vae.device)).latent_dist.mode()
            parts.append(to_pictures(vae.decode(latents).sample))
    painted = np.concatenate(parts)
    return dataclasses.asdict(Rates.of(map(check, painted, scenes))) | {
        "psnr": round(float(np.mean(psnr(painted, pictures))), 2)
    }


def contact_sheet(pictures: list[Image.Image], columns: int = 8, gap: int = 2) -> Image.Image:
    """Pictures in rows, at twice their size."""
    cell = SIDE + gap
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell + gap, rows * cell + gap), (64, 64, 64))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (gap + index % columns * cell, gap + index // columns * cell))
    return sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)


def provenance(module: str = "nano.score") -> dict[str, object]:
    """When, how, with what and on what the numbers were measured."""
    packages = ("torch", "diffusers", "transformers", "onnxruntime", "numpy", "pillow")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": f"python -m {module} " + " ".join(Path(part).name or part for part in sys.argv[1:]),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
