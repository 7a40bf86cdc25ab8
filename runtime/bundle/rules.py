"""What differs between models, as numbers and kinds: text windows, positions, noise, schedule, guidance.

Each record is read by one small module: `Tokenizer` by `bundle/window`; `Positions`, `Noise` and `Schedule`
by those of `sampling` with their names, `References` and `Guidance` by those of `tasks`. A model that follows
another rule is a new `kind` here and a branch there.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flux_trt.runtime.bundle.record import BundlePath, Record, StageName


class Pad(Record):
    """How short prompts are filled up and long ones cut, in tokens."""

    id: int
    token: str
    side: Literal["left", "right"]
    multiple: int = Field(gt=0, description="a prompt is padded to the next multiple")
    most: int = Field(gt=0, description="what is longer loses its end; a fixed window has multiple = most")

    @model_validator(mode="after")
    def _the_longest_is_a_multiple(self) -> Pad:
        if self.most % self.multiple:
            raise ValueError(f"most {self.most} is no multiple of {self.multiple}")
        return self


class Tokenizer(Record):
    """A `tokenizers` file, and the window that a text encoder reads through."""

    file: BundlePath
    prefix: str = Field(description="of the template, before the prompt")
    suffix: str = Field(description="of the template, after the prompt")
    pad: Pad
    mask: bool = Field(description="whether the encoder takes `mask`, too: 1 for tokens, 0 for padding")
    without: list[str] = Field(default=[], description="taken out of prompts: signs of the template's own")


class Prompts(Record):
    """What a model's prompts are like; nothing of a picture follows from it."""

    words: int = Field(default=0, description="fewer are told of: captions that it was trained on had more")
    words_of_edits: int = Field(default=0, description="the same where there are reference pictures")
    boxes: bool = Field(default=False, description="whether it knows boxes: rows of JSON behind a prompt")


class Encoder(Record):
    """A stage that reads prompts, and the tokenizer that it reads them with."""

    stage: StageName
    tokenizer: str


class ReferencePositions(Record):
    """Where reference pictures stand: the k-th, from 0, at `start + k * stride` on an axis."""

    axis: int
    start: int
    stride: int


class Positions(Record):
    """Where the tokens of text and pictures stand, and how an attention head turns with it."""

    axes: list[int] = Field(min_length=1, description="share of a head's channels for each axis")
    theta: float = Field(description="base of the rotation's wavelengths")
    text_axis: int | None = Field(description="the axis on which text tokens are numbered; null: all at 0")
    grid_axes: list[int] = Field(min_length=2, max_length=2, description="of a picture's rows and columns")
    grid_scale: float = Field(description="from one token of a picture to the next")
    reference: ReferencePositions

    @model_validator(mode="after")
    def _axes_are_there(self) -> Positions:
        named = {*self.grid_axes, self.reference.axis} | ({self.text_axis} - {None})
        if strange := [axis for axis in named if axis not in range(len(self.axes))]:
            raise ValueError(f"there is no axis {strange[0]} among {len(self.axes)}")
        return self


class Noise(Record):
    """The order in which a picture's noise is drawn, and how it becomes tokens."""

    channels: int = Field(gt=0, description="of what is drawn")
    cell: int = Field(gt=0, description="a token is cell x cell of its places, folded into channels")
    order: Literal["chw", "tokens"] = Field(description="drawn channel by channel, or token by token")
    round: Literal["bf16"] | None = Field(description="a type that the numbers are rounded to")


class Preferred(Record):
    """Of `sizes` [width, height] the one of the nearest aspect ratio, scaled from `area` to the bundle's."""

    kind: Literal["preferred"] = "preferred"
    sizes: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(min_length=1)
    area: int = Field(gt=0, description="pixels of a picture of the model that `sizes` were made for")


class Shrunk(Record):
    """A picture's own size, shrunk to at most `area` pixels, then its centre cropped to whole patches."""

    kind: Literal["shrunk"] = "shrunk"
    area: int = Field(gt=0)
    least: int = Field(gt=0, description="pixels that each side must have")
    aspect: int = Field(gt=0, description="how often the short side goes into the long one at most")


class Canvas(Record):
    """One picture: whole, shrunk only where it must be, on a canvas of whole patches, filled by reflection.

    What is painted has the canvas's size and is cropped back to the picture. Of several pictures each is
    shrunk, then its centre cropped to whole patches.
    """

    kind: Literal["canvas"] = "canvas"
    area: int = Field(gt=0, description="pixels of a canvas at most")
    side: int = Field(gt=0, description="pixels of a canvas's side at most")
    least: int = Field(gt=0, description="pixels of a canvas's side at least")
    several: int = Field(gt=0, description="pixels of each of several pictures at most")


class References(Record):
    """How reference pictures enter."""

    enters: Literal["latents", "keys", "input"] = Field(
        description="as tokens behind the picture's own that stay as they are, as keys and values that a "
        "stage makes of them once, or as tokens of their own that a stage makes of them"
    )
    most: int | None = Field(default=None, gt=0, description="how many there may be; null: any number")
    size: Annotated[Preferred | Shrunk | Canvas, Field(discriminator="kind")]

    @property
    def apart(self) -> bool:
        """Whether a stage of their own looks at them, and they are no part of the latents."""
        return self.enters != "latents"


class Inpaint(Record):
    """How a picture is painted into by a model that was not made for it."""

    mask: Literal["nearest", "bilinear"] = Field(
        default="nearest", description="how a mask gets the size of the noise as it is drawn"
    )
    source: bool = Field(default=False, description="whether the picture is the first reference, too")


class _Schedule(Record):
    round: Literal["bf16"] | None = Field(description="a type that the times told are rounded to")


class Constant(_Schedule):
    """Noise levels shifted by the same number for every picture."""

    kind: Literal["constant"] = "constant"
    shift: float = Field(gt=0)


class Exponential(_Schedule):
    """Shifted by exp(mu), where mu is a line through two points: more tokens, more noise."""

    kind: Literal["exponential"] = "exponential"
    tokens: list[int] = Field(min_length=2, max_length=2, description="of the two points")
    mu: list[float] = Field(min_length=2, max_length=2, description="there")

    @model_validator(mode="after")
    def _two_points(self) -> Exponential:
        if self.tokens[0] == self.tokens[1]:
            raise ValueError("two points of a line need different numbers of tokens")
        return self


class Line(Record):
    """mu = slope * tokens + offset, as it was fitted for a number of steps."""

    steps: int
    slope: float
    offset: float


class Empirical(_Schedule):
    """Shifted by exp(mu), where mu lies on a line over the steps between two lines over the tokens."""

    kind: Literal["empirical"] = "empirical"
    few: Line
    many: Line
    large: int = Field(description="above so many tokens `many` holds for any number of steps")


Schedule = Annotated[Constant | Exponential | Empirical, Field(discriminator="kind")]


class Guidance(Record):
    """How a prompt's pull is set: told to the model, by a second, negative run, or not at all."""

    kind: Literal["embedded", "true", "none"]
    default: float | None = Field(description="when the caller does not say; null for none")
    negative: str | None = Field(description="of true guidance: the negative prompt when none is given")

    @model_validator(mode="after")
    def _has_its_numbers(self) -> Guidance:
        if (self.default is None) != (self.kind == "none") or (self.negative is None) != (
            self.kind != "true"
        ):
            raise ValueError(f"the numbers of guidance {self.kind} are not there, or are of another kind")
        return self
