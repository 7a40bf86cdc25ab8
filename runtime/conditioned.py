"""What the denoiser needs of text and time, made by the stages before the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends.protocols import Buffer, Graphs
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import TURNS, Flow, taken
from flux_trt.runtime.sampling import beside, positions, schedule
from flux_trt.runtime.sampling.adapted import Adapted

Floats = npt.NDArray[np.float32]
Values = Mapping[str, Buffer | Floats]
"""What stages give, by name."""
Found = list[dict[str, Buffer | Floats]]


def asked(
    bundle: Bundle,
    flow: Flow,
    texts: Sequence[Values],
    levels: Floats,
    guidance: float | Floats | None,
    references: Mapping[str, Floats] | None,
) -> Found:
    """What comes from the request, for each text; see `Pipeline.conditions`."""
    rows, manifest = next(iter(texts[0].values())).shape[0], bundle.manifest
    same: dict[str, Buffer | Floats] = dict(references or beside.none(rows))
    same["timesteps"] = schedule.timesteps(levels, manifest.schedule)
    same["targets"] = schedule.targets(levels, manifest.schedule)
    found: Found = [{**same, **text} for text in texts]
    if guidance is not None:
        told = np.full(rows * len(texts), guidance, np.float32)
        for values, part in zip(found, np.split(told, len(texts)), strict=True):
            values["guidance"] = part
    if any(manifest.takes(name) for name in TURNS):
        for values in found:
            turns = positions.rotations(manifest.model.positions, flow.text(values), ())
            values |= zip(("text_cos", "text_sin"), turns, strict=True)
    return found


def conditioned(
    bundle: Bundle,
    flow: Flow,
    graphs: Graphs,
    kept: beside.Kept,
    found: Found,
    into: Sequence[Mapping[str, Buffer]] | None,
    lent: Adapted,
) -> list[Values]:
    """Run the stages before the loop on what is `asked`: what no text changes, once for all of them."""
    for plain in flow.before:
        stage = bundle.stage(name := lent.stage(plain))
        worded = any(each.name in flow.worded for each in stage.outputs)
        for number, values in enumerate(found if worded else found[:1]):
            there = {each.name: into[number][each.name] for each in stage.outputs} if into else None
            given = taken(stage, {**values, **lent.given(plain)})
            made = kept.run(graphs, name, stage, given, there, lent.key)
            for other in (values,) if worded else found:
                other |= made
    return [{name: values[name] for name in flow.conditions} for values in found]
