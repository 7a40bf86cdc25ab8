"""The contract between exporter and runtime: `bundle.json`, read strictly and written canonically.

Whatever the precision inside a stage, its floating-point inputs and outputs are float32: stages of any
precision and backend fit together, and the runtime needs no bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from flux_trt.runtime.errors import BundleError

SCHEMA = 1
NAME = "bundle.json"

StageName = Literal["clip", "t5", "conditioner", "denoiser", "vae_encoder", "vae_decoder"]
GlueName = Literal["cfg", "mix", "edit", "paste"]
Task = Literal["generate", "image", "inpaint", "edit", "reference", "fill", "control"]
Precision = Literal["fp32", "bf16", "fp16", "fp8"]
STAGES: tuple[StageName, ...] = get_args(StageName)
GLUE: tuple[GlueName, ...] = get_args(GlueName)


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or str(pure) != path:
        raise ValueError(f"{path!r} is not a plain path inside the bundle")
    return path


BundlePath = Annotated[str, AfterValidator(_inside)]


class Record(BaseModel):
    """Strict, unchangeable, with no fields of unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Tensor(Record):
    """One input or output of a stage. A dim is a number, or the name of a dim that varies."""

    name: str
    dtype: Literal["float32", "int64", "uint8"]
    dims: list[int | str]


class Stage(Record):
    """One ONNX graph: its files, what is inside, and its contract."""

    graph: BundlePath
    weights: list[BundlePath]
    precision: Precision
    base: Precision | None = Field(default=None, description="of fp8: the type of all that is not quantised")
    inputs: list[Tensor]
    outputs: list[Tensor]
    key: str = Field(description="digest of everything the stage was built from")


class Scheduler(Record):
    """The numbers of FlowMatchEulerDiscreteScheduler, under diffusers' names."""

    use_dynamic_shifting: bool
    shift: float = Field(gt=0)
    base_shift: float
    max_shift: float
    base_image_seq_len: int = Field(gt=0)
    max_image_seq_len: int = Field(gt=0)


class Tokenizer(Record):
    """A `tokenizers` file, the length every prompt is padded or cut to, and the padding."""

    file: BundlePath
    length: int = Field(gt=0)
    pad_id: int
    pad_token: str


class Model(Record):
    """What the runtime must know of the transformer and the VAE to prepare their inputs."""

    channels: int = Field(description="of a latent token: 4 x the VAE's latent channels; 64 for FLUX.1")
    condition_channels: int = Field(description="of the condition input: 0, 64 (Canny, Depth) or 320 (Fill)")
    guidance: bool
    rope_axes: list[int] = Field(description="head-dim share of the t, y and x positions")
    rope_theta: float
    patch: int = Field(description="pixels of a latent token's side; 16 for FLUX.1")


class Sizes(Record):
    """Picture sides in pixels that the bundle accepts: multiples of `Model.patch` in this range."""

    smallest: int = Field(gt=0)
    largest: int = Field(gt=0)


class Defaults(Record):
    """What a run uses when the caller does not say."""

    width: int
    height: int
    steps: int
    guidance: float


class File(Record):
    """A bundle file's size in bytes and SHA-256."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Source(Record):
    """One checkpoint file that went into the bundle."""

    name: str
    bytes: int
    sha256: str


class Provenance(Record):
    """Where the bundle comes from."""

    checkpoint: str
    text_encoders: str | None = Field(None, description="given beside a checkpoint that lacks them")
    vae: str | None = Field(None, description="given beside a checkpoint that lacks it")
    clip: str | None = Field(None, description="likewise, as are those below")
    t5: str | None = None
    tokenizers: str | None = None
    scheduler: str | None = None
    layout: str
    sources: list[Source]
    tool: str
    packages: dict[str, str]
    created: str


class Manifest(Record):
    """All of `bundle.json`."""

    schema_version: int = SCHEMA
    variant: str
    tasks: list[Task]
    model: Model
    scheduler: Scheduler
    tokenizers: dict[str, Tokenizer]
    sizes: Sizes
    defaults: Defaults
    stages: dict[StageName, Stage]
    glue: dict[GlueName, Stage] = Field(
        default={}, description="small graphs of the loop's own arithmetic; bundles of old have none"
    )
    files: dict[BundlePath, File]
    provenance: Provenance

    @model_validator(mode="after")
    def _every_file_is_listed(self) -> Manifest:
        used = {
            path
            for stage in (*self.stages.values(), *self.glue.values())
            for path in (stage.graph, *stage.weights)
        }
        used |= {tokenizer.file for tokenizer in self.tokenizers.values()}
        if missing := sorted(used - set(self.files)):
            raise ValueError(f"file {missing[0]!r} is used but has no size and hash")
        return self

    def graph(self, name: StageName | GlueName) -> Stage:
        """The entry of a stage or of a glue graph.

        Raises:
            KeyError: there is none.
        """
        everything: dict[str, Stage] = {**dict(self.stages.items()), **dict(self.glue.items())}
        return everything[name]

    def dumps(self) -> str:
        """The canonical text: sorted keys, two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read(bundle: Path) -> Manifest:
    """The manifest of the bundle directory `bundle`.

    Raises:
        BundleError: no manifest there, a newer schema, or a manifest that breaks the contract.
    """
    path = bundle / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(
            f"no {NAME} in {bundle}; give a folder that flux-export build has written"
        ) from None
    except (OSError, UnicodeDecodeError) as fault:
        raise BundleError(f"cannot read {path}: {fault}; build the bundle again") from None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as fault:
        raise BundleError(f"{path} is not JSON ({fault}); build the bundle again") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise BundleError(
            f"{path} has schema {version}, this flux_trt reads up to {SCHEMA}; install a newer flux_trt"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}; build the bundle again") from None
