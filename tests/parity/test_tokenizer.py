import logging
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer, CLIPTokenizer, T5Tokenizer

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.tokenizer import Tokenizer
from flux_trt.runtime.errors import BundleError

NANO = Path(__file__).parents[2] / "examples" / "flux-nano"
TEXTS = [
    "a red circle left of a blue square",
    "A photo of the Café, 12 o'clock; it's small",
    "the quick brown fox jumps over the lazy dog",
]
PROMPTS = [
    "",
    " ",
    "a red circle",
    "  A RED   circle\n\tin tabs ",
    "Ünïcödé — “quotes” … 日本語 🎨🧑‍🎨",
    "e\u0301 against \u00e9, ﬁ ligature, Ⅷ, \u200b zero width",
    "<|endoftext|> in the middle <|endoftext|>",
    "</s> <pad> <unk> <|startoftext|>",
    "a red circle left of a blue square " * 40,
    "x" * 3000,
    "🎨" * 200,
]


def clip_like():
    """Byte-level BPE with `</w>` word ends and CLIP's specials."""
    trained = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        [text.lower() for text in TEXTS],
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    vocab = trained.get_vocab()
    for letter in alphabet:
        vocab.setdefault(f"{letter}</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=[])


def t5_like():
    """Unigram pieces with `▁` word starts and T5's specials."""
    letters = sorted(set("".join(TEXTS).replace(" ", "")))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -4.0) for letter in letters]
    pieces += [(f"▁{word}", -3.0) for word in sorted({word for text in TEXTS for word in text.split()})]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def nano(folder):
    if not (NANO / folder / "tokenizer.json").is_file():
        pytest.skip("examples/flux-nano is not there")
    return AutoTokenizer.from_pretrained(NANO / folder)


ORACLES = {
    "clip": (clip_like, 77),
    "t5": (t5_like, 64),
    "nano-clip": (lambda: nano("tokenizer"), 77),
    "nano-t5": (lambda: nano("tokenizer_2"), 32),
}


@pytest.fixture(scope="module", params=ORACLES)
def pair(request, tmp_path_factory):
    """transformers' tokenizer, ours made from its file, and the length."""
    make, length = ORACLES[request.param]
    oracle = make()
    folder = tmp_path_factory.mktemp(request.param)
    oracle.backend_tokenizer.save(str(folder / "t.json"))
    spec = manifest.Tokenizer(
        file="t.json", length=length, pad_id=oracle.pad_token_id, pad_token=oracle.pad_token
    )
    return oracle, Tokenizer(folder, spec), length


def expected_ids(oracle, prompts, length):
    return oracle(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="np"
    ).input_ids


def test_ids_equal_transformers(pair):
    oracle, mine, length = pair
    ids, _ = mine.encode(PROMPTS)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, expected_ids(oracle, PROMPTS, length))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=120))
def test_ids_of_any_text_equal_transformers(pair, prompt):
    oracle, mine, length = pair
    ids, _ = mine.encode([prompt])
    np.testing.assert_array_equal(ids, expected_ids(oracle, [prompt], length))


def test_what_is_cut_is_told_and_nothing_else(pair):
    oracle, mine, length = pair
    logging.getLogger("transformers").setLevel(logging.ERROR)
    _, lost = mine.encode(PROMPTS)
    for prompt, rest in zip(PROMPTS, lost, strict=True):
        fits = len(oracle(prompt).input_ids) <= length
        assert (rest == "") is fits, prompt
        assert prompt.rstrip().endswith(rest)


def test_the_kept_and_the_lost_words_are_the_prompt(tiny):
    """Six ids are <start>, four words, <end>."""
    spec = manifest.read(tiny).tokenizers["clip"]
    ids, lost = Tokenizer(tiny, spec).encode(["a red circle left blue square ", "a red circle left"])
    np.testing.assert_array_equal(ids, [[1, 4, 5, 7, 9, 2]] * 2)
    assert lost == ["blue square", ""]


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    spec = manifest.Tokenizer(file="t.json", length=8, pad_id=0, pad_token="<pad>")
    with pytest.raises(BundleError, match=r"t\.json is not a tokenizer"):
        Tokenizer(tmp_path, spec)
