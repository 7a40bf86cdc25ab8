"""Tiles on flux-nano's VAE: the same picture where the VAE is local, no seam where it is not.

A VAE's group norms and the attention in its middle look at everything they are given. Two tests keep
flux-nano's from it, with statistics kept from the whole picture and attention left out: tiles must then agree
with the whole. The last takes the VAE as it is: no seam may show, however far tiles and whole differ.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import NANO
from diffusers import AutoencoderKL
from tiles import borders, pictures, seam

from flux_trt.exporter.families.vae import VaeDecoder, VaeEncoder
from flux_trt.runtime.pictures import tiles

PATCH, TILE, OVERLAP = 16, 16, 8
GRID = 10, 24  # tokens; one row of two tiles


def silent(done: int, total: int) -> None:
    pass


class KeptNorm(torch.nn.Module):
    """A group norm that goes on with the statistics of the first picture it has seen."""

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        super().__init__()
        self.norm, self.kept = norm, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.unflatten(1, (self.norm.num_groups, -1))
        if self.kept is None:
            self.kept = torch.var_mean(groups, dim=(2, 3, 4), correction=0, keepdim=True)
        variance, mean = self.kept
        normed = ((groups - mean) / (variance + self.norm.eps).sqrt()).flatten(1, 2)
        return normed * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]


def local(vae: AutoencoderKL) -> AutoencoderKL:
    for half in (vae.encoder, vae.decoder):
        half.mid_block.attentions = torch.nn.ModuleList([None])
    for name, module in list(vae.named_modules()):
        if isinstance(module, torch.nn.GroupNorm):
            parent, _, last = name.rpartition(".")
            setattr(vae.get_submodule(parent), last, KeptNorm(module))
    return vae


def decoder(vae: AutoencoderKL):
    def run(latents: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return vae(torch.from_numpy(latents)).numpy()

    return run


def encoder(vae: AutoencoderKL):
    def run(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            return tuple(each.numpy() for each in vae(torch.from_numpy(pixels)))

    return run


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, *GRID, 64), np.float32)


def test_a_local_decoder_paints_the_same_in_tiles(noise: np.ndarray) -> None:
    run = decoder(local(VaeDecoder.from_pretrained(NANO / "vae").eval()))
    whole = run(noise)
    assert whole.std() > 20

    def share_within_1(tile: int, overlap: int) -> float:
        found = tiles.decode(run, noise, PATCH, tile, overlap, silent)
        return float((np.abs(found.astype(int) - whole) <= 1).mean())

    assert share_within_1(TILE, OVERLAP) >= 0.998
    assert share_within_1(12, 0) < 0.95, "the overlap is what does it"


def test_a_local_encoder_finds_the_same_in_tiles() -> None:
    run = encoder(local(VaeEncoder.from_pretrained(NANO / "vae").eval()))
    size = 1, GRID[0] * PATCH, GRID[1] * PATCH, 3
    pixels = np.random.default_rng(0).integers(0, 256, size).astype(np.float32)
    whole = run(pixels)

    def errors(tile: int, overlap: int) -> list[float]:
        found = tiles.encode(run, pixels, PATCH, tile, overlap, silent)
        return [float(np.sqrt(np.mean((a - b) ** 2)) / b.std()) for a, b in zip(found, whole, strict=True)]

    assert len(whole) == 2
    assert max(errors(TILE, OVERLAP)) <= 0.005
    assert min(errors(12, 0)) > 0.05, "the overlap is what does it"


def test_no_seam_shows_in_smooth_pictures() -> None:
    """A seam is a step across a border that the places beside it do not have, in levels of 255."""
    vae = VaeDecoder.from_pretrained(NANO / "vae").eval(), VaeEncoder.from_pretrained(NANO / "vae").eval()
    decode, encode = decoder(vae[0]), encoder(vae[1])
    for name, picture in pictures(GRID[1] * PATCH):
        if name in ("gradient", "waves"):
            latents = encode(picture[None].astype(np.float32))[0]
            found = tiles.decode(decode, latents, PATCH, TILE, OVERLAP, silent)[0]
            assert found.std() > 20
            places = borders(GRID[1], TILE, OVERLAP)
            assert places == [8 * PATCH, 16 * PATCH]
            assert seam(found, places) < 1
    hard = tiles.decode(decode, latents, PATCH, 12, 0, silent)[0]
    assert seam(hard, borders(GRID[1], 12, 0)) > 10, "without overlap it shows"
