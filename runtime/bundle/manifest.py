"""The contract between exporter and runtime: `bundle.json`, read strictly and written canonically.

Whatever the precision inside a stage, its inputs and outputs are float32, but for those whose contract names
another type that NumPy holds: stages of any precision and backend fit together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError, model_validator

from flux_trt.runtime.bundle import plain, schema1
from flux_trt.runtime.bundle.adapters import Adapters, Branch
from flux_trt.runtime.bundle.record import BundlePath, Record, StageName, Tensor
from flux_trt.runtime.bundle.rules import (
    Encoder,
    Guidance,
    Inpaint,
    Noise,
    Pad,
    Positions,
    Prompts,
    References,
    Schedule,
    Tokenizer,
)
from flux_trt.runtime.errors import BundleError

__all__ = [
    "QUANTISED",
    "Adapters",
    "Branch",
    "Defaults",
    "Encoder",
    "File",
    "GlueName",
    "Guidance",
    "Inpaint",
    "Manifest",
    "MergedLora",
    "Model",
    "Noise",
    "Pad",
    "Positions",
    "Precision",
    "Prompts",
    "Provenance",
    "Record",
    "References",
    "Runs",
    "Schedule",
    "Sizes",
    "Source",
    "Stage",
    "StageName",
    "Task",
    "Tensor",
    "Tokenizer",
    "read",
]
"""All that a manifest is made of, so that who writes one need not know where each record stands."""

SCHEMA = 2
NAME = "bundle.json"

GlueName = Literal["cfg", "mix", "edit", "paste", "ab2"]
Task = Literal["generate", "image", "inpaint", "edit", "reference", "fill", "control"]
Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8", "w8a16", "w4a16", "nvfp4"]
QUANTISED: tuple[Precision, ...] = ("fp8", "int8", "w8a16", "w4a16", "nvfp4")
"""Those in which large linear layers are quantised and all else has a precision of its own, the base."""
Runs = Literal["prompt", "schedule", "picture", "reference", "step"]
"""Once for each prompt, for all steps of a batch, for a batch, for a given picture, or for each step."""
GLUE: tuple[GlueName, ...] = get_args(GlueName)


class Stage(Record):
    """One ONNX graph: its files, what is inside, and its contract."""

    graph: BundlePath
    weights: list[BundlePath]
    precision: Precision
    base: Precision | None = Field(
        default=None, description="of QUANTISED: the type of all that is not quantised"
    )
    inputs: list[Tensor]
    outputs: list[Tensor]
    runs: Runs | None = Field(default=None, description="null for glue, which runs as moves need it")
    key: str = Field(description="digest of everything the stage was built from")

    @property
    def kind(self) -> tuple[Precision, Precision | None]:
        """The precision, and the base of a quantised one."""
        return self.precision, self.base


class Model(Record):
    """What the runtime must know of the transformer and the VAE to prepare their inputs."""

    patch: int = Field(gt=0, description="pixels of a latent token's side")
    positions: Positions
    noise: Noise
    references: References | None = Field(description="null for a model that follows no reference pictures")
    inpaint: Inpaint = Inpaint()

    @property
    def channels(self) -> int:
        """Of a latent token."""
        return self.noise.channels * self.noise.cell**2


class Sizes(Record):
    """Picture sides in pixels that the bundle accepts: multiples of `Model.patch` in this range."""

    smallest: int = Field(gt=0)
    largest: int = Field(gt=0)


class Defaults(Record):
    """What a run uses when the caller does not say."""

    width: int
    height: int
    steps: int


class File(Record):
    """A bundle file's size in bytes and SHA-256."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Source(Record):
    """One checkpoint file that went into the bundle."""

    name: str
    bytes: int
    sha256: str


class MergedLora(Record):
    """A LoRA that was merged into the weights."""

    file: str
    bytes: int
    sha256: str
    strength: float
    form: str = Field(description="whose names it has, and what it changes, for people")


class Provenance(Record):
    """Where the bundle comes from."""

    checkpoint: str
    beside: dict[str, str] = Field(description="option -> what was given with it for what that lacks")
    layout: str
    loras: list[MergedLora] = Field(default=[], description="in the order in which they were merged")
    sources: list[Source]
    tool: str
    packages: dict[str, str]
    created: str | None = Field(description="None: equal builds give equal bytes")


class Manifest(Record):
    """All of `bundle.json`."""

    schema_version: int = SCHEMA
    family: str = Field(description="a label for people, as is the variant")
    variant: str
    tasks: list[Task]
    encoders: list[Encoder]
    tokenizers: dict[str, Tokenizer]
    prompts: Prompts = Prompts()
    model: Model
    schedule: Schedule
    guidance: Guidance
    sizes: Sizes
    defaults: Defaults
    stages: dict[StageName, Stage] = Field(description="in the order in which they are shown")
    glue: dict[GlueName, Stage] = Field(
        default={}, description="small graphs of the loop's own arithmetic; bundles of old have none"
    )
    adapters: Adapters | None = Field(default=None, description="null where no LoRA is taken at run time")
    files: dict[BundlePath, File]
    provenance: Provenance

    @model_validator(mode="after")
    def _every_file_is_listed(self) -> Manifest:
        graphs = (*self.stages.values(), *self.glue.values())
        used = {path for graph in graphs for path in (graph.graph, *graph.weights)}
        used |= {tokenizer.file for tokenizer in self.tokenizers.values()}
        used |= {self.adapters.modules} if self.adapters else set()
        if missing := sorted(used - set(self.files)):
            raise ValueError(f"file {missing[0]!r} is used but has no size and hash")
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> Manifest:
        if both := sorted(set(self.stages) & set(GLUE)):
            raise ValueError(f"the stage {both[0]} has the name of a glue graph")
        if idle := [name for name, stage in self.stages.items() if stage.runs is None]:
            raise ValueError(f"the stage {idle[0]} does not say when it runs")
        if "reference" in self.tasks and self.model.references is None:
            raise ValueError("the task reference needs model.references")
        if self.takes("guidance") and self.guidance.kind != "embedded":
            raise ValueError(f"guidance is {self.guidance.kind}, and a stage takes it")
        for encoder in self.encoders:
            if encoder.stage in self.stages and encoder.tokenizer in self.tokenizers:
                takes = any(each.name == "mask" for each in self.stages[encoder.stage].inputs)
                if takes != self.tokenizers[encoder.tokenizer].mask:
                    raise ValueError(f"{encoder.tokenizer} and {encoder.stage} disagree about the mask")
        return self

    @model_validator(mode="after")
    def _branches_are_inputs(self) -> Manifest:
        if self.adapters is None:
            return self
        for plain_name, name in self.adapters.stages.items():
            if not {plain_name, name} <= set(self.stages):
                raise ValueError(f"the stage {name} with branches stands beside no stage {plain_name}")
        for branch in self.adapters.branches:
            stage = self.stages.get(self.adapters.stages.get(branch.stage, ""))
            dims = {each.name: each.dims for each in stage.inputs} if stage else {}
            count = len(branch.weights)
            down, up = dims.get(branch.down, []), dims.get(branch.up, [])
            if [*down[:1], *down[2:]] != [count, branch.rank] or up[:2] != [count, branch.rank]:
                raise ValueError(f"{branch.down} and {branch.up} are no inputs for {count} layers")
            if not all(isinstance(each, int) for each in (*down[1:2], *up[2:])) or len(up) != 3:
                raise ValueError(f"{branch.down} and {branch.up} do not say how wide their layers are")
        return self

    def graph(self, name: str) -> Stage:
        """The entry of a stage or of a glue graph.

        Raises:
            KeyError: there is none.
        """
        everything: dict[str, Stage] = {**dict(self.stages.items()), **dict(self.glue.items())}
        return everything[name]

    def takes(self, name: str) -> bool:
        """Whether a stage has an input of that name."""
        return any(each.name == name for stage in self.stages.values() for each in stage.inputs)

    @property
    def text(self) -> Pad | None:
        """The window that gives the dim `text` its size; None in a partial bundle without it."""
        for encoder in self.encoders:
            stage, tokenizer = self.stages.get(encoder.stage), self.tokenizers.get(encoder.tokenizer)
            if stage and tokenizer and any("text" in each.dims for each in stage.inputs):
                return tokenizer.pad
        return None

    def dumps(self) -> str:
        """The canonical text: fields in their order here, two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def read(bundle: Path) -> Manifest:
    """The manifest of the bundle directory `bundle`.

    Raises:
        BundleError: no manifest there, a newer schema, or a manifest that breaks the contract.
    """
    path = bundle / NAME
    try:
        text = plain.text(path, bundle)
    except FileNotFoundError:
        raise BundleError(
            f"no {NAME} in {bundle}; give a folder that flux-export build has written"
        ) from None
    except (OSError, ValueError, RuntimeError) as fault:
        raise BundleError(f"cannot read {path}: {fault}; build the bundle again") from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as fault:  # RecursionError: lists in lists without an end
        raise BundleError(f"{path} is not JSON ({fault}); build the bundle again") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise BundleError(
            f"{path} has schema {version}, this flux_trt reads up to {SCHEMA}; install a newer flux_trt"
        )
    try:
        return Manifest.model_validate(schema1.converted(found) if version == schema1.SCHEMA else found)
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}; build the bundle again") from None
