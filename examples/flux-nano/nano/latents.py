"""Training pictures as latents: pairs of scenes that differ by one edit, encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from nano.edit import sample_edit
from nano.picture import Jitter, draw
from nano.scene import blur
from nano.text import vary
from nano.vae import encode, to_tensor

PAIRS = 40_000


@dataclass(frozen=True)
class Batch:
    """Clean latents [B, 16, 64], their texts, and for edits the reference latents [B, 16, 64]."""

    latents: torch.Tensor
    texts: list[str]
    reference: torch.Tensor | None = None


class Latents:
    """`PAIRS` pairs of pictures, [N, 2, 16, 64] float16, with the captions and the instructions both ways."""

    def __init__(
        self,
        path: Path,
        vae: AutoencoderKL,
        device: torch.device,
        edit_share: float = 0.4,
        two_share: float = 0.5,
        seed: int = 3,
    ) -> None:
        if not path.exists():
            torch.save(_encode_pairs(vae, device, np.random.default_rng(seed)), path)
        self.edit_share = edit_share
        """Of training steps that are edits; the others are captions."""
        self.two_share = two_share
        """Of scenes with two objects: they are what the model finds hard."""
        stored = torch.load(path, map_location=device, weights_only=True)
        self.latents: torch.Tensor = stored["latents"]
        self.texts: list[list[str]] = stored[
            "texts"
        ]  # caption, other caption, instruction there, instruction back
        self.vague: list[list[str]] = stored["vague"]  # captions with something left open
        crowded = np.array([" and " in texts[0] for texts in self.texts])
        self._by_objects = np.flatnonzero(~crowded), np.flatnonzero(crowded)

    def captioned(self, rng: np.random.Generator, count: int, dropout: float = 0.1) -> Batch:
        """Pictures with captions, some of them vague, a share `dropout` of them empty."""
        rows, sides = self._rows(rng, count), rng.integers(2, size=count)
        texts = []
        for row, side in zip(rows, sides, strict=True):
            stock = self.vague if rng.random() < 0.08 else self.texts
            texts.append("" if rng.random() < dropout else vary(stock[row][side], rng))
        return Batch(self._take(rows, sides), texts)

    def edits(self, rng: np.random.Generator, count: int, dropout: float = 0.1) -> Batch:
        """Pictures, the references they are made from, and instructions, a share `dropout` of them empty."""
        rows, sides = self._rows(rng, count), rng.integers(2, size=count)
        texts = [
            "" if rng.random() < dropout else vary(self.texts[row][3 - side], rng)
            for row, side in zip(rows, sides, strict=True)
        ]
        return Batch(self._take(rows, sides), texts, self._take(rows, 1 - sides))

    def _rows(self, rng: np.random.Generator, count: int) -> np.ndarray:
        one, two = (rng.choice(rows, count) for rows in self._by_objects)
        return np.where(rng.random(count) < self.two_share, two, one)

    def _take(self, rows: np.ndarray, sides: np.ndarray) -> torch.Tensor:
        return self.latents[torch.from_numpy(rows), torch.from_numpy(sides)].float()


def _encode_pairs(vae: AutoencoderKL, device: torch.device, rng: np.random.Generator) -> dict[str, object]:
    latents, texts, vague = [], [], []
    for start in range(0, PAIRS, 64):
        pictures = []
        for _ in range(min(64, PAIRS - start)):
            edit, jitter = sample_edit(rng), Jitter.sample(rng)
            pictures += [draw(edit.source, jitter), draw(edit.target, jitter)]
            # Side 1 is painted from side 0 by the instruction, and side 0 from side 1 by the reverse.
            texts.append(
                [edit.source.caption, edit.target.caption, edit.instruction, edit.reverse.instruction]
            )
            vague.append([blur(edit.source, rng).caption, blur(edit.target, rng).caption])
        packed = encode(vae, to_tensor(np.stack(pictures), device))
        latents.append(packed.half().reshape(-1, 2, *packed.shape[1:]))
    return {"latents": torch.cat(latents), "texts": texts, "vague": vague}
