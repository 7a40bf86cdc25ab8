"""Which stages a picture needs, and in which order, told by names: what one stage takes, another gives.

    prompts -> encoders -> before the loop -> denoiser, step by step -> vae_decoder

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
ASKED = {"timesteps", "guidance", REFERENCES, "reference_cos", "reference_sin"}
"""What comes from the request, for stages that run before the loop."""


@dataclass(frozen=True)
class Flow:
    """The stages of a picture, and what passes between them."""

    encoders: tuple[StageName, ...]
    before: tuple[StageName, ...]
    """What runs between the prompts and the loop, in an order in which each finds what it takes."""
    given: Mapping[str, Tensor]
    """All that those give, by name."""
    conditions: tuple[str, ...]
    """What of it the denoiser takes."""

    @property
    def stages(self) -> tuple[StageName, ...]:
        """All that text-to-image needs."""
        return (*self.encoders, *self.before, DENOISER, VAE_DECODER)

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
        on_the_way: set[StageName] = set()

        def bring(name: StageName) -> list[str]:
            """Put the stages that `name` needs into `before`; the names of what they give it."""
            own = LOOP if name == DENOISER else ASKED
            wanted = [each for each in bundle.stage(name).inputs if each.name not in own]
            on_the_way.add(name)
            for each in wanted:
                giver = givers.get(each.name)
                if giver is None or giver in on_the_way:
                    raise BundleError(
                        f"{bundle.root} is a partial bundle: no stage gives {each.name}, which {name} takes; "
                        f"build it without --stages"
                    )
                _expect_same(bundle, giver, name, each)
                if giver not in (*encoders, *before):
                    bring(giver)
                    before.append(giver)
            on_the_way.remove(name)
            return [each.name for each in wanted]

        conditions = tuple(bring(DENOISER))
        given = {each.name: each for name in (*encoders, *before) for each in bundle.stage(name).outputs}
        return cls(encoders, tuple(before), given, conditions)

    def text(self, values: Mapping[str, Any]) -> int:
        """Tokens of the text: the size of the dim `text` of some of what is given; 0 without."""
        for name, value in values.items():
            if name in self.given and "text" in self.given[name].dims:
                return int(value.shape[self.given[name].dims.index("text")])
        return 0


def taken(stage: Stage, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of `values` a stage takes; arrays in the type of its contract, buffers as they are."""
    return {
        each.name: values[each.name].astype(each.dtype, copy=False)
        if isinstance(values[each.name], np.ndarray)
        else values[each.name]
        for each in stage.inputs
        if each.name in values
    }


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
    """The stage that gives each name, of those that run before the loop."""
    found: dict[str, StageName] = {}
    instead = bundle.manifest.adapters.stages.values() if bundle.manifest.adapters else ()
    for name in dict.fromkeys((*encoders, *bundle.manifest.stages)):
        if name in instead or bundle.stage(name).runs not in ("prompt", "schedule", "picture"):
            continue
        for each in bundle.stage(name).outputs:
            if found.setdefault(each.name, name) != name:
                raise BundleError(
                    f"{bundle.root}: {found[each.name]} and {name} both give {each.name}; "
                    f"build the bundle again"
                )
    return found


def _expect_same(bundle: Bundle, giver: StageName, taker: StageName, taken: Tensor) -> None:
    """The two ends of a name must agree; the denoiser is given a row of what has a dim `steps`."""
    (given,) = (each for each in bundle.stage(giver).outputs if each.name == taken.name)
    stepped = taker == DENOISER and given.dims[:1] == ["steps"]
    dims = given.dims[1:] if stepped else given.dims
    if (given.dtype, dims) != (taken.dtype, taken.dims):
        raise BundleError(
            f"{bundle.root}: {giver} gives {given.name} as {given.dtype} {given.dims}, and {taker} takes it "
            f"as {taken.dtype} {taken.dims}; build the bundle again"
        )
