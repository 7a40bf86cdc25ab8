"""The bundles that are served, by the names that clients call them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flux_trt.runtime.pipeline import Pipeline
from flux_trt.runtime.stepwise import Stepwise
from flux_trt.serving.errors import ApiError


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle, ready to paint."""

    id: str
    steps: Stepwise
    created: int
    """Seconds since 1970."""

    @property
    def pipeline(self) -> Pipeline:
        """Of the bundle."""
        return self.steps.pipeline

    def close(self) -> None:
        """Free it."""
        self.steps.close()
        self.pipeline.close()

    @property
    def most_rows(self) -> int | None:
        """Rows of one run that an engine takes; None: any number."""
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

    def find(self, name: str | None) -> Model:
        """The one that a client asks for; the only one where it asks for none.

        Raises:
            ApiError: there is none of that name, or several and no name.
        """
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        there = ", ".join([*self._models, *self._aliases])
        if name is None:
            raise ApiError(
                400, f"several models are served; name one of {there}", param="model", code="missing"
            )
        found = self._models.get(self._aliases.get(name, name))
        if found is None:
            raise ApiError(
                404,
                f"the model {name!r:.100} is not served here; name one of {there}",
                param="model",
                code="model_not_found",
            )
        return found

    def listed(self) -> list[dict[str, Any]]:
        """As /v1/models lists them, aliases too."""
        names = {each: each for each in self._models} | self._aliases
        return [self.shown(name) for name in names]

    def shown(self, name: str) -> dict[str, Any]:
        """One of them."""
        model = self.find(name)
        manifest = model.pipeline.bundle.manifest
        return {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": "flux_trt",
            "root": model.id,
            "family": manifest.family,
            "variant": manifest.variant,
            "tasks": list(manifest.tasks),
            "guidance": manifest.guidance.model_dump(),
            "defaults": manifest.defaults.model_dump(),
            "sizes": {**manifest.sizes.model_dump(), "multiple": manifest.model.patch},
        }
