"""The one command: `python -m nano.train` trains every part, resumes where it stopped, and writes the folder.

The phases are bounded by time and not by steps, so a slow machine gives a weaker model and not a later one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from nano import bundle
from nano.distill import distill
from nano.dit import train_dit
from nano.latents import Latents
from nano.plot import join_journals, plot_losses
from nano.sight import train_sight
from nano.text import Encoders, train_text
from nano.vae import train_decoder, train_vae

HERE = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> None:
    """Run all phases in order; those already done cost nothing."""
    parser = argparse.ArgumentParser(description="Train flux-nano; run it again to resume.")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="checkpoint folder to write (default: this folder)"
    )
    parser.add_argument(
        "--runs", type=Path, default=HERE / "runs", help="where states and the journal are kept"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu or cuda (default: cuda when there is one)"
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="a trained checkpoint folder: keep its autoencoder and encoders, train its transformer on",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument(
        "--edit-share",
        type=float,
        default=0.4,
        help="of the transformer's steps that are edits (default: 0.4)",
    )
    parser.add_argument(
        "--two-share", type=float, default=0.5, help="of its pictures that show two objects (default: 0.5)"
    )
    parser.add_argument(
        "--seed", type=int, default=4, help="of the transformer's batches; another one to go on with others"
    )
    parser.add_argument("--vae-minutes", type=float, default=48)
    parser.add_argument("--text-minutes", type=float, default=8)
    parser.add_argument("--sight-minutes", type=float, default=2)
    parser.add_argument("--dit-minutes", type=float, default=180)
    parser.add_argument("--distill-minutes", type=float, default=30)
    parser.add_argument("--decoder-minutes", type=float, default=21)
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    runs, device, seed = options.runs, _device(options.device), options.seed
    runs.mkdir(parents=True, exist_ok=True)
    transformer = None
    if options.start:
        vae, encoders, transformer = _trained(options.start, device)
    else:
        vae = train_vae(runs, options.vae_minutes, device)
        encoders = train_text(runs, options.text_minutes, device)
    data = Latents(runs / "latents.pt", vae, device, options.edit_share, options.two_share)
    sight = train_sight(runs, options.sight_minutes, vae, device)
    teacher = train_dit(runs, options.dit_minutes, data, encoders, sight, device, transformer, seed)
    student = distill(runs, options.distill_minutes, teacher, data, encoders, sight, device, seed + 1)
    if not options.start:
        vae = train_decoder(runs, options.decoder_minutes, vae, device)

    for folder, dtype in ((runs / "float32", torch.float32), (options.out, torch.bfloat16)):
        bundle.save(folder, student, vae, encoders.clip, encoders.t5, dtype)
    before = options.start / "training.jsonl" if options.start else None
    join_journals(before, runs / "journal.jsonl", options.out / "training.jsonl")
    plot_losses(options.out / "training.jsonl", options.out / "loss.png")
    print(f"written: {options.out}; next: python -m nano.score {options.out}")


def _trained(folder: Path, device: torch.device) -> tuple[AutoencoderKL, Encoders, FluxTransformer2DModel]:
    pipe = bundle.load(folder).to(device)
    encoders = Encoders.of(pipe.text_encoder, pipe.text_encoder_2)
    return pipe.vae.eval(), encoders, pipe.transformer


def _device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


if __name__ == "__main__":
    main()
