"""The two tokenizers, built from the words of the captions: CLIP's byte-level BPE and T5's unigram."""

from __future__ import annotations

import string

from transformers import CLIPTokenizer, T5Tokenizer

from nano.scene import BACKGROUNDS, OBJECT_COLOURS, PLACES, SHAPES

CLIP_LENGTH = 77
T5_LENGTH = 32


def words() -> list[str]:
    """Every word that captions and instructions are made of."""
    known = {"a", "an", "the", "and", "at", "in", "on", "of", "to", "into", "with"}
    known |= {"make", "turn", "change", "background"}
    for phrase in (*OBJECT_COLOURS, *BACKGROUNDS, *SHAPES, *PLACES):
        known.update(phrase.split())
    return sorted(known)


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE over the whole byte alphabet, with merges that make most known words one piece."""
    alphabet = [*_byte_letters()]
    pieces = alphabet + [letter + "</w>" for letter in alphabet]
    merges: dict[tuple[str, str], None] = {}
    for word in words():
        piece = word[0]
        for letter in [*word[1:-1], word[-1] + "</w>"][: len(word) - 1]:
            merges.setdefault((piece, letter))
            piece += letter
    pieces += ["".join(pair) for pair in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=CLIP_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """Unigram with one `▁word` piece per known word and single characters for everything else."""
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -9.0)]
    pieces += [("▁" + word, -3.0) for word in (*words(), "A", "An", "Make", "Turn")]
    pieces += [(letter, -9.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)


def _byte_letters() -> list[str]:
    """The 256 printable stand-ins that byte-level BPE uses, in GPT-2's order."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(hidden))]
