"""Tokenizer: prompts become ids of a fixed length, as transformers' fast tokenizers make them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import BundleError

Ids = npt.NDArray[np.int64]


class Tokenizer:
    """One text encoder's tokenizer.

    The ids equal `tokenizer(prompts, padding="max_length", truncation=True, max_length=length)` of
    transformers: long prompts lose their end but keep the end token, short ones are padded on the right.
    """

    def __init__(self, root: Path, spec: manifest.Tokenizer) -> None:
        """Read the `tokenizers` file that `spec` names inside the bundle directory `root`.

        Raises:
            BundleError: not such a file.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(root / spec.file))
        except Exception as fault:  # the library raises bare Exception
            raise BundleError(
                f"{root / spec.file} is not a tokenizer ({fault}); build the bundle again"
            ) from None
        self._tokenizer.enable_truncation(spec.length)
        self._tokenizer.enable_padding(length=spec.length, pad_id=spec.pad_id, pad_token=spec.pad_token)

    def encode(self, prompts: Sequence[str]) -> tuple[Ids, list[str]]:
        """Ids, and what each prompt lost.

        Returns:
            ids int64 [len(prompts), length], and per prompt the text that did not fit ("" if all did).
        """
        found = self._tokenizer.encode_batch(list(prompts))
        ids = np.array([each.ids for each in found], np.int64)
        return ids, [_lost(prompt, each) for prompt, each in zip(prompts, found, strict=True)]


def _lost(prompt: str, encoding: tokenizers.Encoding) -> str:
    if not encoding.overflowing:
        return ""
    rest = encoding.overflowing[0]
    starts = [
        start
        for (start, _), special in zip(rest.offsets, rest.special_tokens_mask, strict=True)
        if not special
    ]
    return prompt[min(starts, default=len(prompt)) :].strip()
