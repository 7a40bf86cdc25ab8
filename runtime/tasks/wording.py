"""What becomes of a prompt's words that its writer may not expect: cut by a window, or read as they stand."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.bundle.window import Seen
from flux_trt.runtime.tasks.boxes import uncited

Words: TypeAlias = str | tuple[str, ...]
"""A prompt: one text for all encoders, or one for each."""

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
"""A word, or a sign of a script that puts no spaces between words."""
LONGEST = 80  # characters of a prompt that a line repeats
WEIGHTS = re.compile(
    r"\([^()]+:\s*-?\d*\.?\d+\s*\)"  # (word:1.2), of A1111 and ComfyUI
    r"|<(?:lora|lyco|hypernet):[^<>]+>"  # of A1111
    r"|\(\([^()]+\)\)|\[\[[^\[\]]+\]\]|\{\{[^{}]+\}\}"  # ((word)), [[word]] of A1111, {{word}} of NovelAI
    r"|\([^()]+\)(?:\d+\.\d+|\++|-+)(?=\W|$)|\w{2,}(?:\+\+|--)(?=[\s,.]|$)"  # (word)1.2, word++ of compel
    r"|\[[^\[\]:|]+:[^\[\]:|]+:\s*\d*\.?\d+\s*\]"  # [from:to:0.5] of A1111
)
"""Weights and the like, as other tools have them in prompts."""

_log = logging.getLogger(__name__)


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


def sparse(prompts: Sequence[str], least: int) -> Iterator[str]:
    """A line where prompts say less than a model's own captions do; an empty one is meant."""
    counts = [len(WORD.findall(text)) for text in dict.fromkeys(prompts) if text]
    if few := [count for count in counts if count < least]:
        words = f"{min(few)} word{'s' * (min(few) != 1)}"
        which = "the" if len(counts) == 1 else "a"
        yield (
            f"{which} prompt has {words}, and this model is meant for captions of {least} and more; "
            "say medium, scene, places, colours and light"
        )


def tell_prompts(
    manifest: Manifest, prompts: Sequence[str], boxes: Sequence[str], with_references: bool
) -> None:
    """Say where prompts are shorter than the model's own captions, and where boxes are not spoken of."""
    rule = manifest.prompts
    for line in sparse(prompts, rule.words_of_edits if with_references else rule.words):
        _log.warning("%s", line)
    for line in uncited(prompts, boxes[0]) if boxes else ():
        _log.warning("%s", line)


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
