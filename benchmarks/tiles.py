"""Tiles of flux-nano's VAE: what they change in a picture, whether a seam shows, and the memory they take.

    python benchmarks/tiles.py [--bundle out/flux-nano] [--sides 512 768 1024] [--tiled 1024 2048 4096]

Seams and differences are of smooth pictures of 512 x 512, over a ladder of tiles and overlaps. flux-nano's
VAE was trained on flat shapes of 64 x 64: it does not paint these pictures well in one piece either, and its
group norms and attention see the whole picture or one tile, so every row also says how far the untiled
picture is from the original. Memory is of child processes that decode noise once, on one thread; in
one piece, 2048 x 2048 would need 17 GB for the scores of the decoder's attention alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from likeness import psnr
from machine import describe, write

from flux_trt.runtime.pictures import tiles

ROOT = Path(__file__).parents[1]
PATCH, CHANNELS, SIDE = 16, 64, 512
LADDER = ((16, 0), (8, 2), (8, 4), (16, 8))
MEMORY_TILE = 32, 8

Bytes = npt.NDArray[np.uint8]


def seam(picture: Bytes, borders: Sequence[int]) -> float:
    """By how much the mean step across a border differs from those beside it, at worst; 1 is a level of 255.

    Args:
        picture: uint8 [H, W, 3].
        borders: the first row, and column, after each border.
    """
    return max(float(np.abs(_excess(picture.mean(axis=1 - axis), borders)).max()) for axis in (0, 1))


def jump(picture: Bytes, borders: Sequence[int]) -> float:
    """By how much any pixel's step across a border exceeds the larger of those beside it, at worst."""
    found = []
    for axis in (0, 1):
        steps = np.abs(np.diff(np.moveaxis(picture.astype(float), axis, 0), axis=0))
        at = np.array(borders) - 1
        found.append((steps[at] - np.maximum(steps[at - 1], steps[at + 1])).max())
    return max(0.0, float(max(found)))


def borders(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin or end inside a picture, in pixels."""
    first = tiles.starts(length, tile, overlap)
    ends = {start + tile for start in first[:-1]} | set(first[1:])
    return [place * PATCH for place in sorted(ends)]


def _excess(profile: npt.NDArray[np.float64], places: Sequence[int]) -> npt.NDArray[np.float64]:
    steps, at = np.diff(profile, axis=0), np.array(places) - 1
    return steps[at] - (steps[at - 1] + steps[at + 1]) / 2


def pictures(side: int) -> Iterator[tuple[str, Bytes]]:
    """Smooth pictures, uint8 [side, side, 3]."""
    y, x = np.mgrid[:side, :side] / side
    r = np.hypot(x - 0.5, y - 0.5)
    waves = np.stack([np.sin(6 * x + 2 * y), np.cos(5 * y), np.sin(4 * (x - y))], axis=-1)
    yield "gradient", _bytes(np.stack([x, y, (x + y) / 2], axis=-1))
    yield "radial", _bytes(np.stack([r, 1 - r, 0 * r + 0.5], axis=-1))
    yield "waves", _bytes(0.5 + 0.3 * waves)
    yield "white", np.full((side, side, 3), 248, np.uint8)


def seams(bundle: Path) -> list[dict[str, object]]:
    """A row for each picture, tile and overlap."""
    decoder, encoder = session(bundle, "vae_decoder"), session(bundle, "vae_encoder")
    length, rows = SIDE // PATCH, []

    def decode(latents: tiles.Floats) -> Bytes:
        return np.asarray(decoder.run(["image"], {"latents": latents})[0])

    def encode(pixels: tiles.Floats) -> tuple[tiles.Floats, ...]:
        return tuple(encoder.run(None, {"image": pixels}))

    for name, picture in pictures(SIDE):
        pixels = picture[None].astype(np.float32)
        latents = encode(pixels)[0]
        whole = decode(latents)[0]
        for tile, overlap in LADDER:
            started = time.perf_counter()
            tiled = tiles.decode(decode, latents, PATCH, tile, overlap, silent)[0]
            seconds = time.perf_counter() - started
            coded = tiles.encode(encode, pixels, PATCH, tile, overlap, silent)[0]
            places, first = borders(length, tile, overlap), tiles.starts(length, tile, overlap)
            apart = np.abs(tiled.astype(float) - whole)
            rows.append(
                {
                    "picture": name,
                    "tile_px": tile * PATCH,
                    "least_overlap_px": min(a + tile - b for a, b in itertools.pairwise(first)) * PATCH,
                    "tiles": len(first) ** 2,
                    "seam": {
                        "tiled": round(seam(tiled, places), 3),
                        "untiled": round(seam(whole, places), 3),
                    },
                    "jump": {"tiled": jump(tiled, places), "untiled": jump(whole, places)},
                    "tiled_to_untiled": {"largest": int(apart.max()), "mean": round(float(apart.mean()), 3)},
                    "psnr_to_original": {
                        "tiled": decibels(tiled, picture),
                        "untiled": decibels(whole, picture),
                    },
                    "latents": {
                        "largest": round(float(np.abs(coded - latents).max()), 3),
                        "rms": round(float(np.sqrt(np.mean((coded - latents) ** 2))), 4),
                        "of_rms": round(float(np.sqrt(np.mean(latents**2))), 4),
                    },
                    "seconds": round(seconds, 2),
                }
            )
            print(rows[-1], file=sys.stderr)
    return rows


def decibels(found: Bytes, expected: Bytes) -> float:
    """PSNR of one picture."""
    return round(float(psnr(found[None], expected[None])[0]), 2)


def silent(done: int, total: int) -> None:
    """Tell nobody."""


def session(bundle: Path, stage: str):  # type: ignore[no-untyped-def]
    """An onnxruntime session on one thread, set up as the runtime's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(bundle / f"{stage}.onnx", options)


def decode_once(bundle: Path, side: int, tiled: bool) -> None:
    """In a child: decode noise, and print peak memory before and after."""
    decoder = session(bundle, "vae_decoder")
    latents = np.random.default_rng(0).standard_normal(
        (1, side // PATCH, side // PATCH, CHANNELS), np.float32
    )

    def run(part: tiles.Floats) -> Bytes:
        return np.asarray(decoder.run(["image"], {"latents": part})[0])

    before, started = peak_mb(), time.perf_counter()
    found = tiles.decode(run, latents, PATCH, *MEMORY_TILE, silent) if tiled else run(latents)
    seconds = time.perf_counter() - started
    loaded = {"loaded_mb": before, "peak_mb": peak_mb(), "picture_mb": round(found.nbytes / 1e6, 1)}
    print(json.dumps({"side": side, "tiled": tiled, **loaded, "seconds": round(seconds, 1)}))


def peak_mb() -> float:
    """Of this process, so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


def memory(bundle: Path, untiled: Sequence[int], tiled: Sequence[int]) -> list[dict[str, object]]:
    """A row for each size, each from a child of its own."""
    rows = []
    for side, how in [*((side, "") for side in untiled), *((side, "tiled") for side in tiled)]:
        command = [sys.executable, __file__, "--child", str(side), how, "--bundle", str(bundle)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"decoding {side} failed:\n{done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout))
        print(rows[-1], file=sys.stderr)
    return rows


def _bytes(values: npt.NDArray[np.float64]) -> Bytes:
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bundle", type=Path, help="of flux-nano in fp32; without it one is built of the VAE"
    )
    parser.add_argument("--sides", type=int, nargs="*", default=[512, 768, 1024], help="decoded in one piece")
    parser.add_argument("--tiled", type=int, nargs="*", default=[1024, 2048, 4096], help="decoded in tiles")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        decode_once(options.bundle, int(options.child[0]), bool(options.child[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        bundle = options.bundle
        if bundle is None:
            bundle = Path(name) / "bundle"
            command = [Path(sys.executable).parent / "flux-export", "build", ROOT / "examples" / "flux-nano"]
            subprocess.run([*command, "--out", bundle, "--stages", "vae_encoder,vae_decoder"], check=True)
        # The children come first: on Linux a child's peak memory is at least its parent's when it starts.
        rows = memory(bundle, options.sides, options.tiled)
        found = {"memory": rows, "seams": seams(bundle)}
    settings = {
        "checkpoint": "flux-nano",
        "side": SIDE,
        "memory_tile_px": MEMORY_TILE[0] * PATCH,
        "memory_least_overlap_px": MEMORY_TILE[1] * PATCH,
        "threads": 1,
        "load_average": round(os.getloadavg()[0], 1),
    }
    write(options.out / "tiles.json", {**describe(), "settings": settings, **found})


if __name__ == "__main__":
    main()
