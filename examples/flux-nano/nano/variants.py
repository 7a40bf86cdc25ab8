"""Fill and Canny: the trained transformer goes on with a picture beside the noise, channel by channel.

    python -m nano.variants fill --out ../flux-nano-fill
    python -m nano.variants canny --out ../flux-nano-canny

Everything but the transformer is flux-nano's own, linked.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from nano import bundle
from nano.beside import VARIANTS, Examples, Variant, sample_examples
from nano.dit import LOOKS, add_noise, embed, fast_math, predict
from nano.phase import Phase
from nano.plot import join_journals
from nano.sight import Sight, train_sight
from nano.text import Encoders, vary

HERE = Path(__file__).resolve().parent.parent
BATCH = 64
T5_TOKENS = 20  # the longest caption has no more; the model already knows that padding means nothing
EMPTY = 0.1  # share of captions that are empty


def main(arguments: list[str] | None = None) -> None:
    """Train one variant's transformer; run it again to resume."""
    parser = argparse.ArgumentParser(description="Train flux-nano on as a FLUX.1 Fill or Canny.")
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--start", type=Path, default=HERE, help="trained checkpoint (default: flux-nano)")
    parser.add_argument("--runs", type=Path, help="where states are kept (default: runs/VARIANT)")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sight-minutes", type=float, default=2)
    options = parser.parse_args(arguments)
    variant, runs = VARIANTS[options.variant], options.runs or HERE / "runs" / options.variant
    runs.mkdir(parents=True, exist_ok=True)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = bundle.load(options.start).to(device)
    vae, encoders = pipe.vae.eval(), Encoders.of(pipe.text_encoder, pipe.text_encoder_2)
    sight = train_sight(runs, options.sight_minutes, vae, device)
    examples = sample_examples(variant, vae, device, np.random.default_rng(8))
    model = widen(pipe.transformer, variant.channels).to(device)
    train(runs, options.minutes, model, examples, encoders, sight, device)
    save(options.out, options.start, variant, model)
    join_journals(None, runs / "journal.jsonl", options.out / "training.jsonl")
    print(f"written: {options.out}")


def widen(model: FluxTransformer2DModel, channels: int) -> FluxTransformer2DModel:
    """The same transformer with more input channels, which mean nothing yet: their weights are zero."""
    channels_out = model.config.in_channels
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    wider = FluxTransformer2DModel(**config | {"in_channels": channels, "out_channels": channels_out})
    weights = model.state_dict()
    old = weights["x_embedder.weight"]
    weights["x_embedder.weight"] = torch.cat([old, old.new_zeros(len(old), channels - channels_out)], 1)
    wider.load_state_dict(weights)
    return wider


def train(
    runs: Path,
    minutes: float,
    model: FluxTransformer2DModel,
    examples: Examples,
    encoders: Encoders,
    sight: Sight,
    device: torch.device,
    seed: int = 9,
) -> None:
    """Rectified flow as in `nano.dit`, at guidance 1 alone."""
    torch.manual_seed(seed)
    phase = Phase(runs, "variant", model.train(), minutes, rate=5e-4, hold=0.3, decay=0.995)
    network = torch.compile(model, dynamic=False)
    rng = np.random.default_rng([seed, phase.step])
    for _ in phase:
        rows = rng.integers(len(examples.texts), size=BATCH)
        texts = ["" if rng.random() < EMPTY else vary(examples.texts[row], rng) for row in rows]
        pooled, text = embed(encoders, texts, T5_TOKENS)
        latents, beside = examples.latents[rows], examples.beside[rows]
        noisy, times, target = add_noise(latents)
        tokens, guidance = torch.cat([noisy, beside], dim=2), torch.ones(BATCH, device=device)
        with fast_math(device):
            velocity = predict(network, tokens, times, guidance, pooled, text).float()
        guess = noisy - times[:, None, None] * velocity
        phase.update((velocity - target).square().mean() + LOOKS * sight.difference(guess, latents))
    phase.use_average()
    model.eval()


def save(folder: Path, start: Path, variant: Variant, model: FluxTransformer2DModel) -> None:
    """A diffusers folder: the transformer in bf16, and links to all other parts of `start`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to("cpu", torch.bfloat16).save_pretrained(folder / "transformer")
    bundle.drop_paths(folder / "transformer" / "config.json")
    for part in bundle.PARTS[1:]:
        link = folder / part
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(start / part, folder))
    index = json.loads((start / "model_index.json").read_text())
    index["_class_name"] = variant.pipeline
    for unknown in ("feature_extractor", "image_encoder"):  # of Kontext, never of these
        index.pop(unknown, None)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
