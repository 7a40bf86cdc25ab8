"""What a bundle says of the LoRAs that it takes at run time."""

from __future__ import annotations

from pydantic import Field

from flux_trt.runtime.bundle.record import BundlePath, Record, StageName


class Branch(Record):
    """The inputs through which LoRAs reach layers that are alike."""

    stage: StageName = Field(description="the plain stage that the layers are in")
    down: str = Field(description="the input [layers, in, rank]")
    up: str = Field(description="the input [layers, rank, out]")
    rank: str = Field(description="the dim that is their rank")
    pieces: int = Field(gt=0, description="how many parts a layer has for files that split it most")
    most: int = Field(gt=0, description="the largest rank")
    weights: list[str] = Field(min_length=1, description="the layers' parameters, in the inputs' order")


class Adapters(Record):
    """Stages with branches for LoRAs, and which modules of files belong to them."""

    rank: int = Field(gt=0, description="of the largest LoRA whose q, k and v are apart")
    modules: BundlePath = Field(description="a JSON file: the names that LoRA files have for the layers")
    stages: dict[StageName, StageName] = Field(description="plain stage -> the one with branches")
    branches: list[Branch]
