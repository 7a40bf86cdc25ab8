"""Language models that read prompts, as data: nothing here brings torch in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Language:
    """The language model that a member of a family reads prompts with, as it is published."""

    widths: tuple[int, ...]
    """Hidden sizes."""
    layers: int
    taps: tuple[int, ...]
    """Layers whose output is used, counted from 1."""
    theta: float
    eps: float
    head_dim: int
    side: Literal["left", "right"]
    """Where prompts are padded when the tokenizer's own config does not say."""
    pad: str
    prefix: str
    suffix: str
    system: str
    options: Mapping[str, Any]
    """Of the chat template."""
    marks: tuple[str, ...]
    """Tokens of the template, by which the tokenizer is known."""
    without: tuple[str, ...] = ()
    """What is taken out of prompts."""
    length: int = 512
    """Tokens of the longest prompt, with the template around it."""
    multiple: int | None = None
    """Prompts are padded to the next multiple; None: all to `length`."""
    pad_place: int | None = None
    """Where all padding stands; None: each where it is counted to."""
