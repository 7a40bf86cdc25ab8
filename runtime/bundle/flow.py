"""Which stages a picture needs, and in which order, told by names: what one stage takes, another gives.

    prompts -> encoders -> before the loop -> [each step: stages that say so -> denoiser] -> vae_decoder

Only three stages are called by their names: the denoiser, and the VAE's two. What the denoiser takes is the
loop's own (`LOOP`), or comes from a stage that has an output of that name; that stage's inputs are found
likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.manifest import Stage
from flux_trt.runtime.bundle.record import StageName, Tensor
from flux_trt.runtime.errors import BundleError, RequestError

DENOISER, VAE_ENCODER, VAE_DECODER = "denoiser", "vae_encoder", "vae_decoder"
LOOP = {"latents", "dt", "cos", "sin", "condition"}
"""What the loop itself gives the denoiser."""
REFERENCES = "reference_latents"
SEEN = {REFERENCES, "reference_cos", "reference_sin"}
"""Reference pictures that are no part of the sequence."""
TURNS = {"text_cos", "text_sin"}
"""How the tokens of the text are rotated."""
ASKED = {"timesteps", "targets", "guidance", *SEEN, *TURNS}
"""What comes from the request, for the stages before the denoiser."""


@dataclass(frozen=True)
class Flow:
    """The stages of a picture, and what passes between them."""

    encoders: tuple[StageName, ...]
    before: tuple[StageName, ...]
    """What runs between the prompts and the loop, in an order in which each finds what it takes."""
    each: tuple[StageName, ...]
    """What runs before the denoiser in each step, in such an order, too."""
    given: Mapping[str, Tensor]
    """All that is there before the loop, by name."""
    conditions: tuple[str, ...]
    """What of it the denoiser and the stages of each step take."""
    worded: frozenset[str]
    """What of it depends on the text."""

    @property
    def stages(self) -> tuple[StageName, ...]:
        """All that text-to-image needs."""
        return (*self.encoders, *self.before, *self.each, DENOISER, VAE_DECODER)

    @classmethod
    def of(cls, bundle: Bundle) -> Flow:
        """The flow of a bundle.

        Raises:
            BundleError: a partial bundle, or stages that do not fit together.
        """
        encoders = tuple(dict.fromkeys(each.stage for each in bundle.manifest.encoders))
        bundle.stage(VAE_DECODER)
        givers = _givers(bundle, encoders)
        before: list[StageName] = []
        each_step: list[StageName] = []
        on_the_way: set[StageName] = set()
        loop: dict[str, Tensor] = {}

        def bring(name: StageName) -> None:
            """Put the stages that `name` needs where they run."""
            own, stepped = LOOP if name == DENOISER else ASKED, bundle.stage(name).runs == "step"
            on_the_way.add(name)
            for each in bundle.stage(name).inputs:
                if each.name in own:
                    if stepped and name != DENOISER:
                        loop[each.name] = each
                    continue
                giver = givers.get(each.name)
                if giver is None or giver in on_the_way:
                    raise BundleError(
                        f"{bundle.root} is a partial bundle: no stage gives {each.name}, which {name} takes; "
                        f"build it without --stages"
                    )
                _expect_same(bundle, giver, name, each)
                if giver not in (*encoders, *before, *each_step):
                    bring(giver)
                    (each_step if bundle.stage(giver).runs == "step" else before).append(giver)
                if stepped and giver not in each_step:
                    loop[each.name] = _output(bundle, giver, each.name)
            on_the_way.remove(name)

        bring(DENOISER)
        _expect_before(bundle, before, each_step)
        given = {each.name: each for name in (*encoders, *before) for each in bundle.stage(name).outputs}
        worded = _worded(bundle, encoders, before)
        return cls(encoders, tuple(before), tuple(each_step), given | loop, tuple(loop), frozenset(worded))

    def in_turns(self, bundle: Bundle) -> tuple[StageName, ...]:
        """What takes turns with the denoiser in every step, and it; () where nothing does."""
        names = (DENOISER, *self.each) if self.each else ()
        adapters = bundle.manifest.adapters
        return (*names, *(adapters.stages[name] for name in names if adapters and name in adapters.stages))

    def text(self, values: Mapping[str, Any]) -> int:
        """Tokens of the text: the size of the dim `text` of some of what is given; 0 without."""
        for name, value in values.items():
            if name in self.given and "text" in self.given[name].dims:
                return int(value.shape[self.given[name].dims.index("text")])
        return 0


def _output(bundle: Bundle, giver: StageName, name: str) -> Tensor:
    (found,) = (each for each in bundle.stage(giver).outputs if each.name == name)
    return found


def _expect_before(bundle: Bundle, before: Sequence[StageName], each_step: Sequence[StageName]) -> None:
    """What runs before the loop takes nothing of what is made in it."""
    late = {each.name for name in each_step for each in bundle.stage(name).outputs}
    for name in before:
        if wrong := sorted(late & {each.name for each in bundle.stage(name).inputs}):
            raise BundleError(
                f"{bundle.root}: {name} runs before the loop and takes {wrong[0]}, which is made in it; "
                f"build the bundle again"
            )


def _worded(bundle: Bundle, encoders: Sequence[StageName], before: Sequence[StageName]) -> set[str]:
    """Names of what is another for another text, as long as it lasts."""
    found = {*TURNS, *(each.name for name in encoders for each in bundle.stage(name).outputs)}
    for name in before:
        if found & {each.name for each in bundle.stage(name).inputs}:
            found |= {each.name for each in bundle.stage(name).outputs}
    return found


def taken(stage: Stage, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of `values` a stage takes; arrays in the type of its contract, buffers as they are."""
    return {
        each.name: values[each.name].astype(each.dtype, copy=False)
        if isinstance(values[each.name], np.ndarray)
        else values[each.name]
        for each in stage.inputs
        if each.name in values
    }


def branches(
    texts: Sequence[Mapping[str, npt.NDArray[Any]]], copies: int
) -> list[dict[str, npt.NDArray[Any]]]:
    """What the encoders gave for the prompts of a batch: as one, or where they do not fit, in its `copies`.

    Raises:
        RequestError: windows of different lengths in one of these.
    """
    if len({tuple(each[name].shape for name in each) for each in texts}) == 1:
        return [together(texts)]
    rows = len(texts) // copies
    return [together(texts[first : first + rows]) for first in range(0, len(texts), rows)]


def together(texts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """What the encoders gave for several prompts, as one batch.

    Raises:
        RequestError: windows of different lengths.
    """
    for name in texts[0]:
        if len(shapes := sorted({each[name].shape for each in texts})) > 1:
            raise RequestError(
                f"prompts of one batch are {', '.join(str(shape[1]) for shape in shapes)} tokens long; "
                f"use --batch 1, and a negative prompt of about the prompt's length"
            )
    return {name: np.concatenate([each[name] for each in texts]) for name in texts[0]}


def _givers(bundle: Bundle, encoders: tuple[StageName, ...]) -> dict[str, StageName]:
    """The stage that gives each name, of those that run before the denoiser."""
    found: dict[str, StageName] = {}
    instead = bundle.manifest.adapters.stages.values() if bundle.manifest.adapters else ()
    for name in dict.fromkeys((*encoders, *bundle.manifest.stages)):
        runs = bundle.stage(name).runs
        if name in (DENOISER, *instead) or runs not in ("prompt", "schedule", "picture", "step"):
            continue
        for each in bundle.stage(name).outputs:
            if found.setdefault(each.name, name) != name:
                raise BundleError(
                    f"{bundle.root}: {found[each.name]} and {name} both give {each.name}; "
                    f"build the bundle again"
                )
    return found


def _expect_same(bundle: Bundle, giver: StageName, taker: StageName, taken: Tensor) -> None:
    """The two ends of a name must agree; what runs in each step is given a row of what has a dim `steps`."""
    given = _output(bundle, giver, taken.name)
    stepped = bundle.stage(taker).runs == "step" and given.dims[:1] == ["steps"]
    dims = given.dims[1:] if stepped else given.dims
    if (given.dtype, dims) != (taken.dtype, taken.dims):
        raise BundleError(
            f"{bundle.root}: {giver} gives {given.name} as {given.dtype} {given.dims}, and {taker} takes it "
            f"as {taken.dtype} {taken.dims}; build the bundle again"
        )
