"""What a bundle says of the LoRAs that it takes at run time."""

from __future__ import annotations

from pydantic import Field

from flux_trt.runtime.bundle.record import BundlePath, Record, StageName

BUCKETS = (16, 64)
"""Ranks, for q, k and v apart, that are rounded up to on a GPU; above them, to the bundle's."""


class Branch(Record):
    """The inputs through which LoRAs reach layers that are alike."""

    stage: StageName = Field(description="the plain stage that the layers are in")
    down: str = Field(description="the input [layers, in, rank]")
    up: str = Field(description="the input [layers, rank, out]")
    rank: str = Field(description="the dim that is their rank")
    pieces: int = Field(gt=0, description="how many parts a layer has for files that split it most")
    most: int = Field(gt=0, description="the largest rank")
    weights: list[str] = Field(min_length=1, description="the layers' parameters, in the inputs' order")

    def rounded(self, rank: int) -> int:
        """The rank that a GPU gives it, so that another LoRA of about that rank has the same shapes."""
        sizes = [each * self.pieces for each in BUCKETS if each * self.pieces < self.most]
        return next((each for each in sizes if each >= rank), self.most)


class Adapters(Record):
    """Stages with branches for LoRAs, and which modules of files belong to them."""

    rank: int = Field(gt=0, description="of the largest LoRA whose q, k and v are apart")
    modules: BundlePath = Field(description="a JSON file: the names that LoRA files have for the layers")
    stages: dict[StageName, StageName] = Field(description="plain stage -> the one with branches")
    branches: list[Branch]
