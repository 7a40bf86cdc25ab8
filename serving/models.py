"""The bundles that are served, by the names that clients call them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flux_trt.runtime.errors import FluxTrtError
from flux_trt.runtime.lora.chosen import Chosen
from flux_trt.runtime.pipeline import Pipeline
from flux_trt.runtime.stepwise import Stepwise
from flux_trt.serving.adapters import Adapters, Wanted
from flux_trt.serving.errors import ApiError


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle, ready to paint."""

    id: str
    steps: Stepwise
    created: int
    """Seconds since 1970."""
    adapters: Adapters = field(default_factory=Adapters)

    @property
    def pipeline(self) -> Pipeline:
        """Of the bundle."""
        return self.steps.pipeline

    def read(self, loras: Sequence[Chosen]) -> None:
        """See that LoRAs can be painted with, at these strengths; the engine will find them read.

        Raises:
            ApiError: they cannot, or not together.
        """
        try:
            self.adapters.expect_same(loras)
            self.pipeline.loras.instead(loras)
        except FluxTrtError as fault:
            message = str(fault)
            for each in loras:
                message = message.replace(str(each.path), each.path.stem)
            raise ApiError(400, message, param="lora", code="invalid_value") from None

    def close(self) -> None:
        """Free it."""
        self.steps.close()
        self.pipeline.close()

    @cached_property
    def most_rows(self) -> int | None:
        """Rows of one run that an engine takes, or 1 where pictures cannot share one; None: any number."""
        if not self.steps.shares:
            return 1
        profiles = getattr(self.pipeline.backend, "profiles", None)
        if profiles is None:
            return None
        return max((int(each["batch"][2]) for each in profiles("denoiser") if "batch" in each), default=None)


class Models:
    """All that are served."""

    def __init__(self, models: Mapping[str, Model], aliases: Mapping[str, str] | None = None) -> None:
        """Name them.

        Args:
            models: by id.
            aliases: other names, and the ids that they stand for.
        """
        self._models, self._aliases = dict(models), dict(aliases or {})

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def find(self, name: str | None) -> tuple[Model, Wanted]:
        """The one that a client asks for, and the adapter of MODEL:ADAPTER; None is the only one.

        Raises:
            ApiError: there is none of that name, or several and no name.
        """
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values())), ()
        there = ", ".join([*self._models, *self._aliases])
        if name is None:
            raise ApiError(
                400, f"several models are served; name one of {there}", param="model", code="missing"
            )
        if found := self._models.get(self._aliases.get(name, name)):
            return found, ()
        base, _, adapter = name.rpartition(":")
        found = self._models.get(self._aliases.get(base, base))
        if found is None or adapter not in found.adapters:
            raise ApiError(
                404,
                f"the model {name!r:.100} is not served here; name one of {there}",
                param="model",
                code="model_not_found",
            )
        return found, ((adapter, 1.0),)

    def listed(self) -> list[dict[str, Any]]:
        """As /v1/models lists them, aliases too, and after each model its adapters."""
        names = [*self._models, *self._aliases]
        return [self.shown(each) for name in names for each in (name, *self._adapted(name))]

    def shown(self, name: str) -> dict[str, Any]:
        """One of them."""
        model, chosen = self.find(name)
        manifest = model.pipeline.bundle.manifest
        return {
            "id": name,
            "object": "model",
            "created": model.adapters[chosen[0][0]].created if chosen else model.created,
            "owned_by": "flux_trt",
            "root": model.id,
            "parent": name.rpartition(":")[0] if chosen else None,
            "adapters": [] if chosen else [each.id for each in model.adapters],
            "family": manifest.family,
            "variant": manifest.variant,
            "tasks": list(manifest.tasks),
            "guidance": manifest.guidance.model_dump(),
            "defaults": manifest.defaults.model_dump(),
            "sizes": {**manifest.sizes.model_dump(), "multiple": manifest.model.patch},
        }

    def _adapted(self, name: str) -> list[str]:
        """A model with each of its adapters, as clients may call them; under its own name only."""
        model = self._models.get(name)
        return [f"{name}:{each.id}" for each in model.adapters] if model else []
