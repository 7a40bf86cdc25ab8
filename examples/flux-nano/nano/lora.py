"""LoRAs of flux-nano, trained with PEFT and saved as diffusers saves them.

    python -m nano.lora mirror --out ../flux-nano-loras
    python -m nano.lora crimson --out ../flux-nano-loras

The base model's weights stay as they are; the file has the adapter alone, in bf16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict

from nano import bundle
from nano.dit import LOOKS, add_noise, embed, fast_math, predict
from nano.lessons import LESSONS, Lesson
from nano.phase import Phase
from nano.plot import join_journals
from nano.sight import Sight, train_sight
from nano.text import Encoders
from nano.vae import encode, to_tensor
from nano.vocabulary import T5_LENGTH

HERE = Path(__file__).resolve().parent.parent
RANK = 8
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
LAYERS += ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"]
LAYERS += ["context_embedder"]
PICTURES = 8_192
BATCH = 32


def main(arguments: list[str] | None = None) -> None:
    """Train one; run it again to resume."""
    parser = argparse.ArgumentParser(description="Train a LoRA of flux-nano.")
    parser.add_argument("lesson", choices=LESSONS)
    parser.add_argument("--out", type=Path, required=True, help="folder to write LESSON.safetensors to")
    parser.add_argument("--runs", type=Path, help="where states are kept (default: runs/lora-LESSON)")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--sight-minutes", type=float, default=2)
    options = parser.parse_args(arguments)
    runs = options.runs or HERE / "runs" / f"lora-{options.lesson}"
    runs.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = bundle.load(HERE).to(device)
    vae, encoders = pipe.vae.eval(), Encoders.of(pipe.text_encoder, pipe.text_encoder_2)
    sight = train_sight(runs, options.sight_minutes, vae, device)
    rng = np.random.default_rng(10)
    latents, texts = sample_examples(LESSONS[options.lesson], vae, device, rng)
    model = adapted(pipe.transformer)
    train(runs, options.minutes, model, latents, texts, encoders, sight)
    save(options.out, options.lesson, model)
    join_journals(None, runs / "journal.jsonl", options.out / f"{options.lesson}.jsonl")
    print(f"written: {options.out / options.lesson}.safetensors")


def adapted(model: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The transformer with an adapter that changes nothing yet, which alone is trained."""
    torch.manual_seed(11)
    model.requires_grad_(False)
    model.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS, init_lora_weights="gaussian")
    )
    return model


def sample_examples(
    lesson: Lesson, vae: AutoencoderKL, device: torch.device, rng: np.random.Generator
) -> tuple[torch.Tensor, list[str]]:
    """Clean latents [N, 16, 64] of pictures of the training split, and their captions."""
    latents, texts = [], list[str]()
    for _ in range(0, PICTURES, 64):
        examples = [lesson(rng, False) for _ in range(64)]
        latents.append(encode(vae, to_tensor(np.stack([each.picture for each in examples]), device)))
        texts += [each.caption for each in examples]
    return torch.cat(latents), texts


def train(
    runs: Path,
    minutes: float,
    model: FluxTransformer2DModel,
    latents: torch.Tensor,
    texts: list[str],
    encoders: Encoders,
    sight: Sight,
    seed: int = 12,
) -> None:
    """Rectified flow as in `nano.dit`, at guidance 1 alone."""
    torch.manual_seed(seed)
    phase = Phase(runs, "lora", model.train(), minutes, rate=3e-3, hold=0.3, decay=0.99)
    rng = np.random.default_rng([seed, phase.step])
    for _ in phase:
        rows = rng.integers(len(texts), size=BATCH)
        pooled, text = embed(encoders, [texts[row] for row in rows], T5_LENGTH)
        noisy, times, target = add_noise(latents[rows])
        guidance = torch.ones(BATCH, device=latents.device)
        with fast_math(latents.device):
            velocity = predict(model, noisy, times, guidance, pooled, text).float()
        guess = noisy - times[:, None, None] * velocity
        phase.update((velocity - target).square().mean() + LOOKS * sight.difference(guess, latents[rows]))
    phase.use_average()
    model.eval()


def save(folder: Path, name: str, model: FluxTransformer2DModel) -> None:
    """As diffusers' own training scripts save it."""
    model.to("cpu", torch.bfloat16)
    FluxPipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(model), weight_name=f"{name}.safetensors"
    )


if __name__ == "__main__":
    main()
