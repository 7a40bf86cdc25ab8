"""LoRAs as a bundle's branches take them: for layers that are alike, A's and B's in two arrays.

    A [layers, in, rank], B [layers, rank, out]: what a layer adds to its output is (x A) B

Strength and scale are in B. Several LoRAs, and the parts of a layer that a file has apart, stand side by side
on the rank axis; parts with one and the same A share its place.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.adapters import Adapters, Branch
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.bundle.record import StageName
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.lora import fit
from flux_trt.runtime.lora.chosen import Chosen
from flux_trt.runtime.lora.file import read_lora
from flux_trt.runtime.lora.forms import Modules
from flux_trt.runtime.lora.term import Lora, Term, kind_of

Floats = npt.NDArray[np.floating[Any]]
MERGE = "merge it at build: flux-export build --lora"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Factors:
    """What LoRAs put into the branches of a bundle, on the host."""

    key: str
    """Stands for the files, their order and their strengths."""
    arrays: Mapping[StageName, Mapping[str, Floats]]
    """Plain stage -> input -> its values; only of stages that are changed, and of those all branches."""


@dataclass
class _Piece:
    """Some ranks of a layer."""

    down: Floats
    """[rank, in]."""
    ups: list[tuple[int, Floats]]
    """First row, [rows, rank]."""


def key_of(wanted: Sequence[Chosen]) -> str:
    """See `Factors.key`."""
    return hashlib.sha256(repr([(each.sha256, each.strength) for each in wanted]).encode()).hexdigest()


def _types_of(bundle: Bundle, adapters: Adapters) -> dict[str, np.dtype[Any]]:
    """Input -> the type that the graph takes it in: float32, or float16."""
    stages = [bundle.stage(name) for name in adapters.stages.values()]
    return {each.name: np.dtype(each.dtype) for stage in stages for each in stage.inputs}


def shapes_of(bundle: Bundle, adapters: Adapters) -> dict[str, tuple[int, int]]:
    """Parameter -> (out, in), of the layers that have branches."""
    found: dict[str, tuple[int, int]] = {}
    for branch in adapters.branches:
        dims = {each.name: each.dims for each in bundle.stage(adapters.stages[branch.stage]).inputs}
        sides = int(dims[branch.up][2]), int(dims[branch.down][1])
        found |= dict.fromkeys(branch.weights, sides)
    return found


def read(bundle: Bundle, wanted: Sequence[Chosen]) -> Factors:
    """Read LoRAs for a bundle.

    Raises:
        RequestError: the bundle takes none at run time, or not these: of another kind or rank, or for what it
            has no branches for.
        CheckpointError: a file that is no LoRA for this model.
        BundleError: a bundle that is not whole.
    """
    adapters = taken_by(bundle.manifest)
    modules = Modules.read(bundle.root / adapters.modules)
    shapes, pieces = shapes_of(bundle, adapters), dict[str, list[_Piece]]()
    for each in wanted:
        family = bundle.manifest.family
        lora = read_lora(
            each.asked, modules, family, hint="merge it at build, where --lora-partial leaves them out"
        )
        for note in lora.notes:
            _log.warning("%s: %s", each.path.name, note)
        terms = _low_rank(lora, shapes)
        parts = {term.place.part for term in terms}
        fit.check(lora.of(terms), dict.fromkeys(parts, shapes), family)
        for term in terms:
            _lay(pieces.setdefault(term.parameter, []), term, lora, shapes[term.parameter][1])
    return Factors(
        key_of(wanted), dict(_stacked(adapters, shapes, _types_of(bundle, adapters), pieces, wanted))
    )


def taken_by(manifest: Manifest) -> Adapters:
    """What a bundle says of LoRAs.

    Raises:
        RequestError: it takes none.
    """
    if manifest.adapters is None:
        raise RequestError(
            "this bundle takes no LoRA at run time; build it with --lora-rank RANK, or merge the LoRA with "
            "flux-export build --lora"
        )
    return manifest.adapters


def _low_rank(lora: Lora, shapes: Mapping[str, tuple[int, int]]) -> list[Term]:
    """The terms that branches can do; none is passed over that changes anything."""
    found = []
    for term in lora.terms:
        if _idle(term):
            continue
        if term.parameter not in shapes:
            what = term.place.part if term.parameter == term.place.weight else f"a bias of {term.place.part}"
            raise RequestError(
                f"{lora.path} changes {what} ({term.module}), for which this bundle has no branch; {MERGE}"
            )
        if (kind := kind_of(term)) != "LoRA":
            raise RequestError(f"{lora.path} has {kind} ({term.module}), which no branch can do; {MERGE}")
        if fit.widened(lora.of([term]), {term.place.part: shapes}):
            raise RequestError(f"{lora.path} brings input channels of its own ({term.module}); {MERGE}")
        found.append(term)
    return found


def _idle(term: Term) -> bool:
    """Whether a term changes nothing, whatever it is for."""
    if "magnitude" in term.tensors:
        return False
    zeros = [term.tensors[role].is_zero for role in ("up", "diff") if role in term.tensors]
    return term.kind != "set" and (term.scale == 0 or any(zeros))


def _lay(there: list[_Piece], term: Term, lora: Lora, into: int) -> None:
    """Put a term beside those that its layer, of `into` columns, has."""
    down = term.tensors["down"].read().astype(np.float32)
    down = down.reshape(len(down), -1)
    up = term.tensors["up"].read()
    up = (lora.strength * term.scale * up.reshape(len(up), -1).astype(np.float64)).astype(np.float32)
    if not np.isfinite(up).all():
        raise RequestError(
            f"{lora.path}: at a strength of {lora.strength:g} {term.module} is not finite; use less"
        )
    if term.place.swapped:
        up = np.concatenate(np.split(up, 2)[::-1])
    if down.shape[1] < into:  # a LoRA of a model with fewer channels
        down = np.pad(down, ((0, 0), (0, into - down.shape[1])))
    first = term.place.rows[0] if term.place.rows else 0
    for piece in there:
        apart = all(first + len(up) <= at or at + len(rows) <= first for at, rows in piece.ups)
        if apart and np.array_equal(piece.down, down):
            piece.ups.append((first, up))
            return
    there.append(_Piece(down, [(first, up)]))


def _stacked(
    adapters: Adapters,
    shapes: Mapping[str, tuple[int, int]],
    types: Mapping[str, np.dtype[Any]],
    pieces: Mapping[str, list[_Piece]],
    wanted: Sequence[Chosen],
) -> Iterator[tuple[StageName, dict[str, Floats]]]:
    for stage in adapters.stages:
        own = [each for each in adapters.branches if each.stage == stage]
        if any(weight in pieces for branch in own for weight in branch.weights):
            found: dict[str, Floats] = {}
            for branch in own:
                whole = _arrays(branch, adapters, shapes[branch.weights[0]], pieces, wanted)
                found |= {name: _typed(each, types[name], wanted) for name, each in whole.items()}
            yield stage, found


def _typed(values: Floats, kind: np.dtype[Any], wanted: Sequence[Chosen]) -> Floats:
    with np.errstate(over="ignore"):
        found = values.astype(kind, copy=False)
    if kind != np.float32 and not np.isfinite(found).all():
        of = " and ".join(each.path.name for each in wanted)
        raise RequestError(
            f"{of} has values beyond float16, which the bundle takes; use less of it, or {MERGE}"
        )
    return found


def _arrays(
    branch: Branch,
    adapters: Adapters,
    sides: tuple[int, int],
    pieces: Mapping[str, list[_Piece]],
    wanted: Sequence[Chosen],
) -> dict[str, Floats]:
    """A branch's two inputs; of a rank of 1 at least, since not every backend takes what is empty."""
    layers = [pieces.get(weight, []) for weight in branch.weights]
    rank = max(max(sum(len(piece.down) for piece in layer) for layer in layers), 1)
    if rank > branch.most:
        of = " and ".join(each.path.name for each in wanted)
        needed = -(-rank // branch.pieces)
        raise RequestError(
            f"{of} {'has' if len(wanted) == 1 else 'together have'} a rank of {needed}, and the bundle takes "
            f"{adapters.rank}; build with --lora-rank {needed}, or {MERGE}"
        )
    out, into = sides
    down = np.zeros((len(layers), into, rank), np.float32)
    up = np.zeros((len(layers), rank, out), np.float32)
    for index, layer in enumerate(layers):
        at = 0
        for piece in layer:
            ranks = slice(at, at := at + len(piece.down))
            down[index, :, ranks] = piece.down.T
            for first, rows in piece.ups:
                up[index, ranks, first : first + len(rows)] = rows.T
    return {branch.down: down, branch.up: up}
