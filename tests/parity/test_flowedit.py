"""FlowEdit against the published equations in float64, driven by diffusers' transformer.

The transcription follows algorithm 1 of arXiv 2412.08629 and `FlowEditFLUX` of the authors' repository; the
noise is drawn as the runtime draws it, and the schedule is diffusers' own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from family_rules import FLUX1_NOISE
from PIL import Image, ImageDraw

from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.sampling import noise

Get = Callable[..., Path]
SOURCE = "a red circle at the top left on a white background"
TARGET = "a blue circle at the top left on a white background"
SIZE = (64, 48)


def given() -> Image.Image:
    image = Image.new("RGB", SIZE, (230, 230, 225))
    ImageDraw.Draw(image).ellipse((6, 6, 26, 26), fill="red")
    return image


class Oracle:
    """diffusers' parts, and the published loop around them."""

    def __init__(self, folder: Path) -> None:
        self.pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self.grid = SIZE[1] // 16, SIZE[0] // 16

    def levels(self, steps: int) -> np.ndarray:
        scheduler, config = self.pipe.scheduler, self.pipe.scheduler.config
        shift = calculate_shift(
            self.grid[0] * self.grid[1],
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
        return scheduler.sigmas.numpy().astype(np.float64)

    def velocity(self, prompt: str, guidance: float) -> Callable[[np.ndarray, float], np.ndarray]:
        text, pooled, text_ids = self.pipe.encode_prompt(prompt, None, max_sequence_length=32)
        ids = self.pipe._prepare_latent_image_ids(1, *self.grid, "cpu", torch.float32)
        embeds = self.pipe.transformer.config.guidance_embeds

        @torch.no_grad()
        def run(latents: np.ndarray, t: float) -> np.ndarray:
            found = self.pipe.transformer(
                hidden_states=torch.from_numpy(latents[None]).float(),
                timestep=torch.tensor([t]).float(),
                guidance=torch.tensor([guidance]) if embeds else None,
                pooled_projections=pooled,
                encoder_hidden_states=text,
                txt_ids=text_ids,
                img_ids=ids,
                return_dict=False,
            )
            return found[0][0].double().numpy()

        return run

    @torch.no_grad()
    def see(self, image: Image.Image) -> np.ndarray:
        vae = self.pipe.vae
        z = vae.encode(self.pipe.image_processor.preprocess(image)).latent_dist.mode()
        z = (z - vae.config.shift_factor) * vae.config.scaling_factor
        return self.pipe._pack_latents(z, *z.shape)[0].double().numpy()

    @torch.no_grad()
    def show(self, latents: np.ndarray) -> np.ndarray:
        packed = torch.from_numpy(latents[None]).float()
        z = self.pipe._unpack_latents(packed, SIZE[1], SIZE[0], self.pipe.vae_scale_factor)
        z = z / self.pipe.vae.config.scaling_factor + self.pipe.vae.config.shift_factor
        return np.asarray(self.pipe.image_processor.postprocess(self.pipe.vae.decode(z).sample)[0])

    def edit(
        self, steps: int, n_min: int, n_max: int, n_avg: int, guidances: tuple[float, float], seed: int
    ) -> np.ndarray:
        source, target = self.velocity(SOURCE, guidances[0]), self.velocity(TARGET, guidances[1])
        levels, x_src = self.levels(steps), self.see(given())
        draws = noise.Generator(seed)
        z_edit = x_src.copy()
        sampled = None
        for i in range(steps):
            t, t_next = levels[i], levels[i + 1]
            if steps - i > n_max:
                continue
            if steps - i > n_min:
                total = np.zeros_like(x_src)
                for _ in range(n_avg):
                    n = draws.latents(FLUX1_NOISE, self.grid).astype(np.float64)
                    z_src = (1 - t) * x_src + t * n
                    z_tar = z_edit + z_src - x_src
                    total += (target(z_tar, t) - source(z_src, t)) / n_avg
                z_edit = z_edit + (t_next - t) * total
            else:
                if sampled is None:
                    n = draws.latents(FLUX1_NOISE, self.grid).astype(np.float64)
                    sampled = z_edit + (1 - t) * x_src + t * n - x_src
                sampled = sampled + (t_next - t) * target(sampled, t)
        return self.show(z_edit if sampled is None else sampled)


@pytest.mark.parametrize(
    ("name", "steps", "n_min", "n_max", "n_avg"),
    [
        ("flux-nano", 12, 0, 10, 1),
        ("flux-nano", 6, 2, 6, 2),
        ("flux-nano", 5, 1, 4, 3),
        ("dev-like", 6, 3, 5, 1),
        ("schnell-like", 4, 0, 3, 2),
    ],
)
def test_edits_are_the_published_ones(
    checkpoint: Get, bundle: Get, name: str, steps: int, n_min: int, n_max: int, n_avg: int
) -> None:
    guidances = (1.5, 3.0)
    expected = Oracle(checkpoint(name)).edit(steps, n_min, n_max, n_avg, guidances, seed=5)
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:
        asked = {"steps": steps, "n_min": n_min, "n_max": n_max, "n_avg": n_avg}
        asked |= {"source_guidance": guidances[0], "target_guidance": guidances[1]}
        (ours,) = pipeline.edit(given(), source=SOURCE, target=TARGET, seed=5, **asked)
        several = pipeline.edit(
            given(), source=SOURCE, target=[SOURCE, TARGET], seed=[1, 5], batch=2, **asked
        )
    for found in (ours, several[1]):
        assert (np.abs(np.asarray(found).astype(int) - expected) <= 1).mean() >= 0.999
    assert (np.abs(np.asarray(ours).astype(int) - np.asarray(given())) > 1).mean() > 0.01


def test_the_same_prompt_twice_leaves_the_picture(bundle: Get) -> None:
    with Pipeline.load(bundle("flux-nano"), "onnxruntime") as pipeline:
        asked = {"source_guidance": 2.0, "target_guidance": 2.0, "steps": 4, "n_max": 3}
        (same,) = pipeline.edit(given(), source=SOURCE, target=SOURCE, **asked)
        whole = pipeline.decode(pipeline.encode_picture(np.asarray(given())).mode[None], (3, 4))[0]
    assert (np.abs(np.asarray(same).astype(int) - np.asarray(whole)) <= 1).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_max": 29}, "n_max 29 are not possible"),
        ({"n_min": 25}, "n_min 25"),
        ({"n_max": 0}, "n_max at least 1"),
        ({"n_avg": 0}, "n_avg is 0"),
        ({"target": []}, "no target is given"),
        ({"source": ["a", "b"]}, "2 sources are given for 1 targets"),
        ({"image": [given(), given()]}, "2 pictures are given as image for 1 prompts"),
    ],
)
def test_what_cannot_be_edited_is_said(bundle: Get, wrong: dict, message: str) -> None:
    from flux_trt.runtime.bundle import manifest
    from flux_trt.runtime.tasks.request import Request

    asked = {"image": given(), "source": SOURCE, "target": TARGET, **wrong}
    image, source, target = (asked.pop(name) for name in ("image", "source", "target"))
    with pytest.raises(RequestError, match=message):
        Request.of_edit(manifest.read(bundle("flux-nano")), image, source, target, **asked)
