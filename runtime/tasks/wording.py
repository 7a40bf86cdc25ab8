"""What becomes of a prompt's words that its writer may not expect: cut by a window, or read as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from flux_trt.runtime.bundle.window import Seen

Words: TypeAlias = str | tuple[str, ...]
"""A prompt: one text for all encoders, or one for each."""

LONGEST = 80  # characters of a prompt that a line repeats
WEIGHTS = re.compile(
    r"\([^()]+:\s*-?\d*\.?\d+\s*\)"  # (word:1.2), of A1111 and ComfyUI
    r"|<(?:lora|lyco|hypernet):[^<>]+>"  # of A1111
    r"|\(\([^()]+\)\)|\[\[[^\[\]]+\]\]|\{\{[^{}]+\}\}"  # ((word)), [[word]] of A1111, {{word}} of NovelAI
    r"|\([^()]+\)(?:\d+\.\d+|\++|-+)(?=\W|$)|\w{2,}(?:\+\+|--)(?=[\s,.]|$)"  # (word)1.2, word++ of compel
    r"|\[[^\[\]:|]+:[^\[\]:|]+:\s*\d*\.?\d+\s*\]"  # [from:to:0.5] of A1111
)
"""Weights and the like, as other tools have them in prompts."""


def part(prompt: Words, encoder: int) -> str:
    """What an encoder, counted from 0, reads of a prompt."""
    return prompt if isinstance(prompt, str) else prompt[encoder]


def literal(prompts: Sequence[Words]) -> Iterator[str]:
    """A line for each text that is written for a tool that reads weights."""
    texts = [text for prompt in prompts for text in ((prompt,) if isinstance(prompt, str) else prompt)]
    for text in dict.fromkeys(texts):
        if found := WEIGHTS.search(text):
            yield (
                f"{short(found.group())!r} in a prompt is read as plain text, as FLUX was trained; "
                "say it in words instead of weights"
            )


def cut(seen: Mapping[str, Seen]) -> Iterator[str]:
    """A line for each text that does not fit into an encoder's window.

    Args:
        seen: the same prompts through each encoder's window, by the encoders' names.
    """
    for name, window in seen.items():
        for index, text in enumerate(window.lost):
            if not text:
                continue
            whole = [other for other, others in seen.items() if not others.lost[index]]
            rest = f"; {' and '.join(whole)} still reads all of it" if whole else ""
            yield f"{name} reads only {window.ids.shape[1]} tokens; not read: {short(text)!r}{rest}"


def short(text: str) -> str:
    """A text's first characters, where it is long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()}..."
