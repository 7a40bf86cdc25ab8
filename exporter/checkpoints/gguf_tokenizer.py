"""The tokenizer that a T5 in a GGUF file brings with it, as transformers would make it of spiece.model.

llama.cpp writes the sentencepiece vocabulary into the metadata, and fills it up with `[PAD<id>]` to as many
tokens as the model has rows. T5's sentinels `<extra_id_*>`, which no spiece.model has, follow the pieces.

Sources: https://github.com/ggml-org/llama.cpp/blob/master/conversion/t5.py (T5EncoderModel.set_vocab), and
transformers' convert_slow_tokenizer.T5Converter and T5Tokenizer (which of the tokens are special).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_trt.exporter.checkpoints.quantised.gguf import read_values
from flux_trt.exporter.checkpoints.quantised.refused import broken
from flux_trt.runtime.errors import CheckpointError

GGML = "tokenizer.ggml."
LISTS = (f"{GGML}tokens", f"{GGML}scores", f"{GGML}token_type", f"{GGML}precompiled_charsmap")
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
"""Types of tokens; sentencepiece's."""
FILLER, SENTINEL = re.compile(r"\[PAD\d+\]"), re.compile(r"<extra_id_\d+>")
SENTINELS = 100
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer, and what it fills prompts up with."""

    backend: Any
    pad: str


def read_tokenizer(file: Path) -> GgufTokenizer:
    """Make a tokenizer of a GGUF file's metadata.

    Raises:
        CheckpointError: it has no T5 vocabulary, or one that contradicts itself.
    """
    said = read_values(file, LISTS)
    if said.get(f"{GGML}model") != "t5" or not said.get(LISTS[0]):
        raise CheckpointError(
            f"{file} has no T5 vocabulary in its metadata; give a diffusers folder or a bundle that has it "
            "with --tokenizers"
        )
    pieces = _pieces(file, said)
    eos, unk, pad = (_number(file, said, *each) for each in (("eos", 1), ("unknown", 2), ("padding", 0)))
    if not all(0 <= number < len(pieces) for number in (eos, unk, pad)):
        raise broken(file, f"its vocabulary of {len(pieces)} tokens lacks its own special ones")
    return GgufTokenizer(_assembled(file, said, pieces, eos, unk, pad), pieces[pad][0])


def _pieces(file: Path, said: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Text, score and type of each token."""
    lists = [found for found in map(said.get, LISTS[:3]) if isinstance(found, list)]
    if len(lists) < 3 or len({len(found) for found in lists}) > 1:
        raise broken(file, "the lists of its vocabulary are not all there or not of one length")
    rows = list(zip(*lists, strict=True))
    for token, score, kind in rows:
        if not (isinstance(token, str) and isinstance(score, float) and isinstance(kind, int)):
            raise broken(file, f"token {token!r:.40} of its vocabulary has no score or no type")
        if not math.isfinite(score):
            raise broken(file, f"the score of {token!r:.40} in its vocabulary is not finite")
    # Added tokens are found before pieces are looked for; their made-up scores would move the unknown's.
    pieces = [(token, 0.0 if kind == USER_DEFINED else score, kind) for token, score, kind in rows]
    end = len(pieces)
    while end and pieces[end - 1][2] == UNUSED and FILLER.fullmatch(pieces[end - 1][0]):
        end -= 1
    if len(pieces) - end < SENTINELS:
        return pieces[:end]
    return pieces[:end] + [(f"<extra_id_{n}>", 0.0, CONTROL) for n in reversed(range(SENTINELS))]


def _number(file: Path, said: dict[str, Any], name: str, default: int) -> int:
    found = said.get(f"{GGML}{name}_token_id", default)
    if not isinstance(found, int):
        raise broken(file, f"its {name}_token_id is no number")
    return found


def _assembled(
    file: Path, said: dict[str, Any], pieces: list[tuple[str, float, int]], eos: int, unk: int, pad: int
) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    scheme = "always" if said.get(f"{GGML}add_space_prefix", True) else "never"
    steps, charsmap = list[Any](), _charsmap(file, said)
    try:
        made = Tokenizer(Unigram([(text, score) for text, score, _ in pieces], unk, byte_fallback=False))
        if charsmap:
            steps.append(normalizers.Precompiled(charsmap))
    except Exception as fault:  # the library raises bare Exception
        raise broken(file, f"its vocabulary is not one ({' '.join(str(fault).split())[:100]})") from None
    if said.get(f"{GGML}remove_extra_whitespaces", True):
        steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), SPACE)]
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    end = pieces[eos][0]
    made.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, eos)]
    )
    for number, (text, _, kind) in enumerate(pieces):
        special = kind == CONTROL or number in (eos, unk, pad) or SENTINEL.fullmatch(text) is not None
        if special or kind == USER_DEFINED:
            made.add_tokens([AddedToken(text, normalized=False, special=special)])
    return made


def _charsmap(file: Path, said: dict[str, Any]) -> bytes:
    """How characters are replaced: the size of a trie, the trie, and texts; checked as sentencepiece does."""
    found = said.get(LISTS[3]) or []
    if not (isinstance(found, list) and all(isinstance(each, int) for each in found)):
        raise broken(file, "its precompiled_charsmap is not made of bytes")
    data = bytes(each & 0xFF for each in found)
    size = int.from_bytes(data[:4], "little")
    if data and not (size >= 1024 and size % 1024 == 0 and 4 + size < len(data)):
        raise broken(file, "its precompiled_charsmap is cut off")
    return data
