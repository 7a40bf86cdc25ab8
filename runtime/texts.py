"""What the encoders give for the prompts of a request: encoded when they are needed, and only few kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.flow import branches
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.tasks import wording
from flux_trt.runtime.tasks.wording import Words

Floats = npt.NDArray[np.float32]
Encoded = Mapping[str, Floats]
Encode = Callable[[Sequence[Sequence[Words]]], Sequence[Encoded]]
"""What stands together is encoded together; each [len(prompts), ...]."""


class Texts:
    """Encoded prompts. Each different one is encoded once, unless more are needed before it comes again.

    A prompt is always encoded with the same neighbours, those of the request, so that its numbers do not
    depend on what was kept.
    """

    def __init__(
        self,
        prompts: Sequence[Words],
        company: int,
        keep: int,
        encode: Encode,
        tell: Callable[[int, int], None],
    ) -> None:
        """Encode nothing yet.

        Args:
            prompts: all of the request.
            company: how many are encoded together.
            keep: how many are kept at least; more when more are needed at once. FLUX.1's take 8 MB each.
            encode: the encoders.
            tell: (different prompts encoded so far, different prompts).
        """
        different = list(dict.fromkeys(prompts))
        self._chunks = [different[first : first + company] for first in range(0, len(different), company)]
        self._place = {
            prompt: (chunk, row) for chunk, some in enumerate(self._chunks) for row, prompt in enumerate(some)
        }
        self._keep, self._encode, self._tell = keep, encode, tell
        self._kept: OrderedDict[int, Encoded] = OrderedDict()
        self._done: set[int] = set()

    def bring(self, needed: Iterable[Words], after: Iterable[Iterable[Words]] = ()) -> None:
        """Encode what is needed and not there.

        Args:
            needed: prompts; they stay until the next call.
            after: what will be needed next, batch by batch: if anything must be encoded, these are too, as
                long as there is room.
        """
        now = self._of(needed)
        missing = [chunk for chunk in now if chunk not in self._kept]
        wanted = dict.fromkeys(now)
        for batch in after if missing else ():
            more = [chunk for chunk in self._of(batch) if chunk not in wanted]
            if self._size([*wanted, *more]) > self._keep:
                break
            wanted |= dict.fromkeys(more)
            missing += [chunk for chunk in more if chunk not in self._kept]
        for chunk in wanted:
            if chunk in self._kept:
                self._kept.move_to_end(chunk)
        room = max(self._keep, self._size(wanted))
        while self._kept and self._size({*self._kept, *missing}) > room:
            self._kept.popitem(last=False)
        if not missing:
            return
        for chunk, found in zip(missing, self._encode([self._chunks[each] for each in missing]), strict=True):
            self._kept[chunk] = found
            self._done.add(chunk)
            self._tell(self._size(self._done), len(self._place))

    def of(self, prompts: Sequence[Words], copies: int = 1) -> list[dict[str, Any]]:
        """The prompts as one batch, each [len(prompts), ...]; `bring` must have brought them.

        Where windows differ, one batch for each of the `copies` in which pictures go through the denoiser.
        """
        rows = []
        for prompt in prompts:
            chunk, row = self._place[prompt]
            rows.append({name: values[row : row + 1] for name, values in self._kept[chunk].items()})
        return branches(rows, copies)

    def _of(self, prompts: Iterable[Words]) -> list[int]:
        return list(dict.fromkeys(self._place[prompt][0] for prompt in prompts))

    def _size(self, chunks: Iterable[int]) -> int:
        return sum(len(self._chunks[chunk]) for chunk in chunks)


def lengths(windows: Sequence[Window], words: Words) -> tuple[int, ...]:
    """Tokens that each encoder sees of a prompt, with padding."""
    seen = (window.of([wording.part(words, index)]) for index, window in enumerate(windows))
    return tuple(each.ids.shape[1] for each in seen)


def longest(bundle: Bundle, prompts: Iterable[Words]) -> int | None:
    """Tokens of the longest of these prompts, with padding; None: as many whatever the prompt."""
    there = bundle.manifest.tokenizers
    specs = [there[each.tokenizer] for each in bundle.manifest.encoders if each.tokenizer in there]
    if all(spec.pad.multiple == spec.pad.most for spec in specs):
        return None
    windows = [Window(bundle.root, spec) for spec in specs]
    found = (lengths(windows, words) for words in dict.fromkeys(prompts))
    return max((length for each in found for length in each), default=None)
