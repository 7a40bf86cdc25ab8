"""What each saving of FLUX.3's split is worth in a guided step, and what one that is not taken would be.

    python benchmarks/savings_flux3.py [--rounds 5] [--out benchmarks/results]

Products of a step are counted at full size, 1024x1024, on tensors without data. The prompt has 320 tokens,
the negative one 80, so that both go through the denoiser one after the other; with one reference picture of
the picture's own size and without. A rung is a step without that one saving. With --rounds, CPU seconds of
PyTorch on one thread stand beside that, in turns, of a model of as many blocks of a sixth of the width, with
a sixteenth of all tokens.

The last row is no part of the export: the denoiser cut where text, picture and reference pictures meet, so
that both branches of guidance share the picture's own blocks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import describe, write
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flux_trt.exporter.families.flux3.model import (
    Context,
    Denoiser,
    Part,
    References,
    Time,
    modulated,
    shared,
    through,
)
from flux_trt.exporter.families.flux3.params import KLEIN, ROWS, Flux3Params
from flux_trt.exporter.families.layers import modulate, residual

FULL = replace(KLEIN, flow_map=False)
SMALL = replace(FULL, hidden_size=512, num_heads=4, context_in_dim=512)


@dataclass(frozen=True)
class Case:
    """The stages, and a step's inputs."""

    params: Flux3Params
    tokens: int
    references: int
    device: str
    windows: tuple[int, int] = (320, 80)

    def __post_init__(self) -> None:
        with torch.device(self.device):
            made = [kind(self.params).eval() for kind in (Time, Context, References, Denoiser)]
        object.__setattr__(self, "stages", made)

    def draw(self, *dims: int) -> Tensor:
        """Random numbers."""
        return torch.randn(*dims, device=self.device)

    def turns(self, length: int) -> tuple[Tensor, Tensor]:
        """Rotations of so many tokens."""
        half = self.params.head_dim // 2
        return self.draw(length, half), self.draw(length, half)


@dataclass(frozen=True)
class Without:
    """A step without one of the savings."""

    rows: bool = True
    """Modulation is made of times, in rows, before the loop."""
    still: bool = True
    """Text and reference pictures go through their own blocks once."""
    last: bool = True
    """The last block is asked of the picture's tokens alone."""
    cut: bool = False
    """Both branches share the picture's own blocks."""


def step(case: Case, how: Without) -> Tensor:
    """Both branches of a guided step; what is done once a picture is not part of it."""
    p, L, R = case.params, case.tokens, case.references
    _, context, references, denoiser = case.stages  # type: ignore[attr-defined]
    mod, latents, early = case.draw(1, ROWS, p.hidden_size), case.draw(1, L, p.in_channels), None
    found = []
    for T in case.windows:
        if not how.rows:
            modulation_of_tokens(case, T)
        text, given = case.draw(1, T, p.hidden_size), case.draw(1, R, p.hidden_size)
        if not how.still:
            text = through(context.txt_mode_blocks, text, mod[:, :3], *case.turns(T))
            if R:
                given = through(
                    references.content_mode_blocks["image_cond"], given, mod[:, :3], *case.turns(R)
                )
        if early is None or not how.cut:
            x = denoiser.emb_in["image"](latents)
            early = through(denoiser.content_mode_blocks["image"], x, mod[:, :3], *case.turns(L))
        found.append(joint(denoiser, text, early, given, mod, case.turns(T + L + R), how.last))
    return torch.stack(found)


def joint(
    denoiser: Denoiser,
    text: Tensor,
    image: Tensor,
    given: Tensor,
    mod: Tensor,
    turns: tuple[Tensor, Tensor],
    last: bool,
) -> Tensor:
    """The blocks that all share, and the end, as `Denoiser` has them."""
    T, L = text.shape[1], image.shape[1]
    single, ends, txt, cond = mod[:, 3:6], mod[:, 6:8], mod[:, 8:11], mod[:, 11:]
    parts = [Part(text, txt), Part(image, single), Part(given, cond)]
    *before, final = denoiser.single_blocks
    for block in before:
        parts = shared(block, parts, *turns)
    if last:
        added = final(modulated(parts), *turns, asking=slice(T, T + L))
        image = residual(parts[1].x, single[:, 2:], added)
    else:
        image = shared(final, parts, *turns)[1].x
    end: Any = denoiser.final_layer["image"]["linear"]  # type: ignore[index]
    return end(modulate(image, ends[:, :1], ends[:, 1:]))


def modulation_of_tokens(case: Case, text: int) -> None:
    """As diffusers makes it: every token's vector through the modulation, in every step."""
    (time_of, *_), D = case.stages, case.params.hidden_size  # type: ignore[attr-defined]
    lengths = {"txt": text, "image": case.tokens, "image_cond": case.references}
    for heads in (time_of.early_stream_modulations, time_of.single_stream_modulations):
        for mode, length in lengths.items():
            heads[mode](case.draw(1, length, D))
    time_of.final_layer["image"]["adaLN_modulation"](case.draw(1, case.tokens, D))


RUNGS: dict[str, Without] = {
    "as exported": Without(),
    "tokens are modulated, not rows": Without(rows=False),
    "text and reference pictures go through their own blocks in every step": Without(still=False),
    "the last block makes all tokens": Without(last=False),
    "not taken: both branches share the picture's own blocks": Without(cut=True),
}


def counted(case: Case) -> dict[str, float]:
    """Rung -> TFLOP of a step."""
    found = {}
    for name, how in RUNGS.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            step(case, how)
        found[name] = counter.get_total_flops() / 1e12
    return found


def timed(case: Case, rounds: int) -> dict[str, list[float]]:
    """Rung -> CPU seconds of each round."""
    found: dict[str, list[float]] = {name: [] for name in RUNGS}
    names = list(RUNGS)
    for index in range(rounds + 1):
        for name in (*names[index % len(names) :], *names[: index % len(names)]):
            start = time.process_time()
            with torch.no_grad():
                step(case, RUNGS[name])
            if index:  # the first round warms up
                found[name].append(time.process_time() - start)
    return found


def shares(of: Callable[[str], float], names: Sequence[str] = tuple(RUNGS)) -> dict[str, float]:
    """How much more, or less, each rung takes than the export."""
    return {name: round(of(name) / of(names[0]) - 1, 4) for name in names}


def measure(references: int, rounds: int) -> dict[str, Any]:
    """One number of reference pictures."""
    flops = counted(Case(FULL, 64 * 64, references * 64 * 64, "meta"))
    found = {
        "tflop": {name: round(each, 3) for name, each in flops.items()},
        "more_flop": shares(flops.__getitem__),
    }
    if not rounds:
        return found
    torch.manual_seed(0)
    seconds = timed(Case(SMALL, 16 * 16, references * 16 * 16, "cpu", (20, 5)), rounds)
    # Of the same round, so that what else the machine does weighs on both.
    first = seconds["as exported"]
    ratios = {
        name: median(one / other for one, other in zip(each, first, strict=True))
        for name, each in seconds.items()
    }
    return {
        **found,
        "cpu_seconds": {name: round(median(each), 3) for name, each in seconds.items()},
        "more_cpu": {name: round(each - 1, 4) for name, each in ratios.items()},
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = {}
    for references in (0, 1):
        cases[f"{references} reference pictures"] = measure(references, args.rounds)
        print(cases, flush=True)
    crossing = 64 * 64 * FULL.hidden_size * 4
    settings = {"windows": Case.windows, "size": [1024, 1024], "rounds": args.rounds}
    about = {**describe(), "settings": settings, "mb_through_the_cut": round(crossing / 1e6, 1)}
    write(args.out / "savings_flux3.json", {**about, "cases": cases})


if __name__ == "__main__":
    main()
