"""Optimisation profiles: the shapes an engine is tuned for, and those it merely accepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flux_trt.runtime.bundle.engine import Profile, Range
from flux_trt.runtime.bundle.flow import REFERENCES
from flux_trt.runtime.bundle.manifest import GlueName, Manifest, StageName
from flux_trt.runtime.bundle.rules import Canvas, Shrunk
from flux_trt.runtime.pictures import latents
from flux_trt.runtime.pictures.vae import Tiling

MAX_STEPS = 100
TUNED_TEXT = 4
"""Multiples that a window of any length is tuned for: a prompt of one paragraph."""


@dataclass(frozen=True)
class Shapes:
    """What the engines must be able to paint."""

    sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels; each gets a profile tuned for it."""
    max_batch: int = 1
    max_references: int = 0
    """Reference pictures, each as large as the largest size or as the bundle's rule makes it, that may follow
    the picture's own tokens."""
    max_text: int | None = None
    """Tokens of the longest prompt where windows are as long as their prompts; None: all that are read."""
    wide: bool = True
    """Accept smaller sizes as well, at twice the time to build."""
    pairs: bool = True
    """Two rows a picture, as true guidance and FlowEdit need; a batch that never varies builds faster."""


def default_shapes(found: Manifest) -> Shapes:
    """The bundle's default size, one picture at a time, and one reference where it follows such."""
    size = (found.defaults.width, found.defaults.height)
    return Shapes((size,), max_references=int(found.model.references is not None))


def profiles(found: Manifest, name: StageName | GlueName, shapes: Shapes) -> list[Profile]:
    """One profile for each size, and wide ones that take every shape of at most their tokens; none twice.

    True guidance and FlowEdit send every picture through the loop's graphs twice at once, so these take two
    rows a picture, where `pairs` are wanted. The VAE never sees more than a tile of a picture that is cut.
    Its wide profiles are two, one for pictures that lie and one for those that stand: of a picture with at
    most N tokens the shorter side has at most sqrt(N), so the two take all that the denoiser takes.

    Args:
        found: of the bundle; it knows the text length, the patch and the smallest side.
        name: of the stage or the glue.
        shapes: sizes that the bundle accepts.

    Raises:
        RequestError: a size that the bundle does not accept.
    """
    patch = found.model.patch
    grids = [latents.grid(width, height, patch, found.sizes) for width, height in shapes.sizes]
    tokens = max(rows * columns for rows, columns in grids)
    makes_keys = any(each.name == REFERENCES for each in found.graph(name).inputs)
    follow, kept = _references(found, shapes, tokens, makes_keys)
    least = found.sizes.smallest // patch
    wide = [
        _dims(
            found,
            shapes,
            rows=rows,
            columns=columns,
            tokens=(least * least, tokens, tokens + follow),
            reference=kept,
        )
        for rows, columns in _wide_sides(found, max(tokens, shapes.max_references and _of_references(found)))
    ]
    if name in ("vae_encoder", "vae_decoder"):
        grids = [_tile(found, grid) for grid in grids]
    tuned = [
        _dims(
            found,
            shapes,
            rows=(rows,) * 3,
            columns=(columns,) * 3,
            tokens=(rows * columns, rows * columns, rows * columns + follow),
            reference=kept,
        )
        for rows, columns in grids
    ]
    varying = {dim for tensor in found.graph(name).inputs for dim in tensor.dims if isinstance(dim, str)}
    taken = [*tuned, *wide] if shapes.wide else tuned
    if shapes.pairs and (makes_keys or found.graph(name).runs in (None, "schedule", "step")):
        taken = [{**each, "batch": (1, 1, 2 * shapes.max_batch)} for each in taken]
    cut = [{dim: each[dim] for dim in sorted(varying)} for each in taken]
    return [each for index, each in enumerate(cut) if each not in cut[:index]]


def _wide_sides(found: Manifest, tokens: int) -> Iterator[tuple[Range, Range]]:
    """Rows and columns that the VAE sees of any picture of at most `tokens` tokens: lying, then standing.

    A larger picture than `Tiling.whole` is cut into tiles, which are smaller than that.
    """
    patch, tiling = found.model.patch, Tiling.of(found.model, None)
    seen = min(tokens, tiling.whole)
    least, short = found.sizes.smallest // patch, math.isqrt(seen)
    long = max(short, min(found.sizes.largest // patch, seen // least))
    yield (least, short, short), (least, short, long)
    yield (least, short, long), (least, short, short)


def _of_references(found: Manifest) -> int:
    """Tokens of the largest reference picture that the bundle's rule makes."""
    rule, patch = found.model.references, found.model.patch
    if rule is None:
        return 0
    if isinstance(rule.size, Shrunk):
        return rule.size.area // patch**2
    if isinstance(rule.size, Canvas):
        return rule.size.several // patch**2
    factor = math.sqrt(found.defaults.width * found.defaults.height / rule.size.area)
    return max(math.prod(max(round(side * factor / patch), 1) for side in size) for size in rule.size.sizes)


def _references(found: Manifest, shapes: Shapes, tokens: int, first: bool) -> tuple[int, Range]:
    """Tokens of reference pictures: of those that follow the picture's own, and of those kept as keys.

    A picture that keeps its own size may be larger than the one that is painted. A stage that makes keys does
    not run for no picture (`first`); what takes them may be given none.
    """
    rule = found.model.references
    most = shapes.max_references * max(tokens, _of_references(found))
    if rule is None or rule.enters == "latents":
        return most, (1, 1, 1)
    return 0, (int(first), min(tokens, max(most, 1)), max(most, 1))


def _tile(found: Manifest, grid: latents.Grid) -> latents.Grid:
    """What the VAE sees of a picture at once."""
    tiling = Tiling.of(found.model, None)
    return (min(grid[0], tiling.side), min(grid[1], tiling.side)) if tiling.cuts(grid) else grid


def _dims(
    found: Manifest, shapes: Shapes, rows: Range, columns: Range, tokens: Range, reference: Range
) -> Profile:
    patch, text = found.model.patch, _text(found, shapes)
    rule = found.model.references
    turned = rule is not None and rule.enters == "input"
    return {
        "batch": (1, 1, shapes.max_batch),
        "text": text,
        "steps": (1, min(found.defaults.steps, MAX_STEPS), MAX_STEPS),
        "tokens": tokens,
        "reference": reference,
        "sequence": _sum(tokens, text, reference if turned else (0, 0, 0)),
        "h": rows,
        "w": columns,
        "height": _each(rows, lambda each: each * patch),
        "width": _each(columns, lambda each: each * patch),
        **_ranks(found),
    }


def _text(found: Manifest, shapes: Shapes) -> Range:
    """Tokens of the text: those of a fixed window, or of some of its multiples."""
    window = found.text
    if window is None:
        return (512,) * 3
    least, most = window.multiple, window.most
    if shapes.max_text is not None and least < most:
        most = min(most, max(-(-shapes.max_text // least), 1) * least)
    return least, min(TUNED_TEXT * least, most), most


def _sum(*dims: Range) -> Range:
    least, tuned, most = map(sum, zip(*dims, strict=True))
    return least, tuned, most


def _ranks(found: Manifest) -> Profile:
    """Of LoRAs' branches: tuned for the smallest that a GPU rounds to."""
    branches = found.adapters.branches if found.adapters else ()
    return {each.rank: (1, each.rounded(1), each.most) for each in branches}


def _each(dims: Range, change: Callable[[int], int]) -> Range:
    least, tuned, most = map(change, dims)
    return least, tuned, most


def shapes_of(profile: Profile, dims: Sequence[int | str]) -> tuple[tuple[int, ...], ...]:
    """The least, tuned-for and largest shape of a tensor with such dims."""
    ranges = [(dim,) * 3 if isinstance(dim, int) else profile[dim] for dim in dims]
    return tuple(zip(*ranges, strict=True))
