"""Pictures to latents and back through the VAE's graphs: in one piece, or in tiles where they are large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends.protocols import Buffer, Graph
from flux_trt.runtime.bundle.manifest import Model
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import tiles
from flux_trt.runtime.pictures.encoded import EncodedPicture
from flux_trt.runtime.pictures.latents import Grid

Floats = npt.NDArray[np.float32]
Tell = Callable[[int, int], None]

TILE = 1024  # pixels
WHOLE = 2048 * 1024  # pixels of a picture that is still done in one piece
SHARED = 128  # pixels that neighbours share at least: with fewer, seams were seen on smooth pictures


@dataclass(frozen=True)
class Tiling:
    """When and how pictures are cut."""

    side: int
    """Tokens of a tile's side; 0: never cut."""
    whole: int
    """Tokens of a picture that is still done in one piece."""

    @classmethod
    def of(cls, model: Model, tile: int | None) -> Tiling:
        """From a tile's side in pixels.

        Args:
            model: of the bundle.
            tile: 0 never cuts; None cuts pictures of more than two megapixels into tiles of 1024.

        Raises:
            RequestError: a side that is no multiple of the patch, or too small.
        """
        patch = model.patch
        if tile is None:
            return cls(TILE // patch, WHOLE // patch**2)
        if tile and (tile % patch or tile < 4 * patch):
            raise RequestError(
                f"tile {tile} is not possible; it is a multiple of {patch} from {4 * patch} on, or 0"
            )
        return cls(tile // patch, (tile // patch) ** 2)

    def overlap(self, patch: int) -> int:
        """Tokens that neighbours share: a quarter of a side, or 128 pixels, but no more than half a side."""
        return max(self.side // 4, min(self.side // 2, SHARED // patch))

    def cuts(self, grid: Grid) -> bool:
        """Whether a picture of this grid is cut."""
        return bool(self.side) and grid[0] * grid[1] > self.whole and max(grid) > self.side


def encode(graph: Graph, pixels: Floats, model: Model, tiling: Tiling, tell: Tell) -> EncodedPicture:
    """One picture [H, W, 3] of 0..255, as the VAE sees it."""
    grid = pixels.shape[0] // model.patch, pixels.shape[1] // model.patch

    def run(image: Floats) -> tuple[Floats, ...]:
        found = graph.run({"image": image})
        return tuple(np.array(found[name].numpy()) for name in ("latents", "deviation") if name in found)

    image = pixels[None].astype(np.float32)
    if tiling.cuts(grid):
        found = tiles.encode(run, image, model.patch, tiling.side, tiling.overlap(model.patch), tell)
    else:
        found = run(image)
    mode, *deviation = (each.reshape(-1, model.channels) for each in found)
    return EncodedPicture(mode, deviation[0] if deviation else None, grid)


def decode(
    graph: Graph, packed: Buffer | Floats, grid: Grid, model: Model, tiling: Tiling, tell: Tell
) -> npt.NDArray[np.uint8]:
    """Latents [batch, tokens, channels] to pictures uint8 [batch, H, W, 3]."""
    batch = packed.shape[0]

    def run(latents: Buffer | Floats) -> npt.NDArray[np.uint8]:
        pixels: npt.NDArray[np.uint8] = graph.run({"latents": latents})["image"].numpy()
        return pixels

    if not tiling.cuts(grid):
        return run(packed.reshape(batch, *grid, model.channels))
    values = packed if isinstance(packed, np.ndarray) else packed.numpy()
    pictures = [
        tiles.decode(
            run, each.reshape(1, *grid, -1), model.patch, tiling.side, tiling.overlap(model.patch), tell
        )
        for each in values
    ]
    return np.concatenate(pictures)
