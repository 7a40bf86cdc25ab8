"""Windows: what a text encoder sees of prompts - the template around them, cut, padded, and the mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from flux_trt.runtime.bundle.rules import Tokenizer
from flux_trt.runtime.errors import BundleError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """Prompts through a window."""

    ids: Ints
    """[prompts, length]."""
    mask: Ints
    """[prompts, length]: 1 for tokens, 0 for padding."""
    lost: list[str]
    """Of each prompt, the text that did not fit ("" if all did)."""

    @property
    def inputs(self) -> dict[str, Ints]:
        """What an encoder may take, by name."""
        return {"ids": self.ids, "mask": self.mask}


class Window:
    """One text encoder's window.

    The ids equal `tokenizer(prompts, padding=True, pad_to_multiple_of=multiple, truncation=True,
    max_length=most)` of transformers for the rendered template: what is too long loses its end but keeps the
    tokenizer's own end token, what is short is padded.
    """

    def __init__(self, root: Path, spec: Tokenizer) -> None:
        """Read the `tokenizers` file that `spec` names inside the bundle directory `root`.

        Raises:
            BundleError: not such a file.
        """
        self._path = root / spec.file
        with _usable(self._path):
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self._path))
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(spec.pad.most)
        self._spec = spec

    @property
    def fixed(self) -> bool:
        """Whether all prompts get the same length."""
        return self._spec.pad.multiple == self._spec.pad.most

    def of(self, prompts: Sequence[str]) -> Seen:
        """Prompts side by side, padded to the longest one's multiple.

        Raises:
            BundleError: the tokenizer cannot take them, such as for want of a token for what is unknown.
        """
        spec, pad = self._spec, self._spec.pad
        texts = [spec.prefix + self._plain(prompt) + spec.suffix for prompt in prompts]
        with _usable(self._path):
            found = self._tokenizer.encode_batch(texts)
        lost = [_lost(text, spec.suffix, each) for text, each in zip(texts, found, strict=True)]
        longest = max(map(len, found), default=0)
        length = max(-(-longest // pad.multiple), 1) * pad.multiple
        for each in found:
            each.pad(length, direction=pad.side, pad_id=pad.id, pad_token=pad.token)
        ids, mask = ([getattr(each, part) for each in found] for part in ("ids", "attention_mask"))
        return Seen(np.array(ids, np.int64), np.array(mask, np.int64), lost)

    def _plain(self, prompt: str) -> str:
        """The prompt without what its template alone may say."""
        for sign in self._spec.without:
            prompt = prompt.replace(sign, "")
        return prompt


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """The library raises bare Exception, and for a Rust panic one that is no Exception: the file's fault."""
    try:
        yield
    except BaseException as fault:
        if isinstance(fault, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise BundleError(f"{path} is not a tokenizer ({fault}); build the bundle again") from None


def _lost(text: str, suffix: str, encoding: tokenizers.Encoding) -> str:
    """What of the prompt was not read, or of the template's end where only that was cut."""
    if not encoding.overflowing:
        return ""
    rest = encoding.overflowing[0]
    starts = [
        start
        for (start, _), special in zip(rest.offsets, rest.special_tokens_mask, strict=True)
        if not special
    ]
    cut = text[min(starts, default=len(text)) :]
    return cut.removesuffix(suffix).strip() or cut.strip()
