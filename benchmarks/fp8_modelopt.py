"""flux-nano quantised by nvidia-modelopt with its FP8 default recipe, in torch on the CPU; run by fp8.py.

    python fp8_modelopt.py JOB.json PICTURES.npz

Needs an environment of its own (docs/fp8.md), without flux_trt. The job names the checkpoint, the prompts to
calibrate with and to paint, steps, guidance, the first seed and the T5 length. `exact` are the first
pictures before, `found` all of them after. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from diffusers import FluxPipeline

BATCH = 32


def quantised(model: torch.nn.Module) -> dict[str, int]:
    """How many modules of each kind have their input quantised."""
    on = (m for m in model.modules() if getattr(getattr(m, "input_quantizer", None), "is_enabled", False))
    return dict(Counter(type(module).__name__ for module in on))


def main() -> None:
    """Calibrate, paint, say what was quantised."""
    job = json.loads(Path(sys.argv[1]).read_text())
    pipe = FluxPipeline.from_pretrained(job["checkpoint"], dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def paint(prompts: list[str]) -> np.ndarray:
        pictures = []
        for first in range(0, len(prompts), BATCH):
            some = prompts[first : first + BATCH]
            seeds = range(job["seed"] + first, job["seed"] + first + len(some))
            pictures += pipe(
                some,
                width=job["size"][0],
                height=job["size"][1],
                num_inference_steps=job["steps"],
                guidance_scale=job["guidance"],
                max_sequence_length=job["text_length"],
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            ).images
        return np.stack([np.asarray(picture) for picture in pictures])

    exact = paint(job["prompts"][:BATCH])
    for name in ("text_encoder_2", "transformer"):
        model = getattr(pipe, name)
        mtq.quantize(model, mtq.FP8_DEFAULT_CFG, forward_loop=lambda _: paint(job["calibration"]))
    np.savez(sys.argv[2], exact=exact, found=paint(job["prompts"]))
    layers = {name: quantised(getattr(pipe, name)) for name in ("transformer", "text_encoder_2")}
    versions = {name: version(name) for name in ("nvidia-modelopt", "torch", "diffusers", "transformers")}
    print(json.dumps({"quantised": layers, "versions": versions}))


if __name__ == "__main__":
    main()
