import logging
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer, CLIPTokenizer, T5Tokenizer

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.rules import Pad, Tokenizer
from flux_trt.runtime.bundle.window import Window
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
    return oracle, Window(folder, spec_of(oracle, multiple=length, most=length)), length


def spec_of(oracle, side="right", **window):
    pad = Pad(id=oracle.pad_token_id, token=oracle.pad_token, side=side, **window)
    return Tokenizer(file="t.json", prefix="", suffix="", pad=pad, mask=False)


def expected_ids(oracle, prompts, length):
    return oracle(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="np"
    ).input_ids


def test_ids_equal_transformers(pair):
    oracle, mine, length = pair
    ids = mine.of(PROMPTS).ids
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, expected_ids(oracle, PROMPTS, length))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=120))
def test_ids_of_any_text_equal_transformers(pair, prompt):
    oracle, mine, length = pair
    ids = mine.of([prompt]).ids
    np.testing.assert_array_equal(ids, expected_ids(oracle, [prompt], length))


def test_what_is_cut_is_told_and_nothing_else(pair):
    oracle, mine, length = pair
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for prompt, rest in zip(PROMPTS, mine.of(PROMPTS).lost, strict=True):
        fits = len(oracle(prompt).input_ids) <= length
        assert (rest == "") is fits, prompt
        assert prompt.rstrip().endswith(rest)


def test_the_kept_and_the_lost_words_are_the_prompt(tiny):
    """Six ids are <start>, four words, <end>."""
    spec = manifest.read(tiny).tokenizers["clip"]
    seen = Window(tiny, spec).of(["a red circle left blue square ", "a red circle left"])
    np.testing.assert_array_equal(seen.ids, [[1, 4, 5, 7, 9, 2]] * 2)
    assert seen.lost == ["blue square", ""]


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    pad = Pad(id=0, token="<pad>", side="right", multiple=8, most=8)
    with pytest.raises(BundleError, match=r"t\.json is not a tokenizer"):
        Window(tmp_path, Tokenizer(file="t.json", prefix="", suffix="", pad=pad, mask=False))


@pytest.fixture(scope="module", params=ORACLES)
def saved(request, tmp_path_factory):
    """transformers' tokenizer, and the folder of its file."""
    oracle = ORACLES[request.param][0]()
    folder = tmp_path_factory.mktemp(request.param)
    oracle.backend_tokenizer.save(str(folder / "t.json"))
    return oracle, folder


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("multiple", "most"), [(1, 12), (8, 24), (16, 16), (80, 8000)])
def test_windows_of_any_side_and_multiple_equal_transformers(saved, side, multiple, most):
    """With the mask; each prompt in a window of its own, and all of them side by side."""
    oracle, folder = saved
    mine = Window(folder, spec_of(oracle, side, multiple=multiple, most=most))
    asked = {"pad_to_multiple_of": multiple, "max_length": most, "truncation": True, "return_tensors": "np"}
    texts = [*PROMPTS, *TEXTS]
    for prompts in ([text] for text in texts), [texts]:
        for some in prompts:
            expected = oracle(some, padding=True, padding_side=side, **asked)
            seen = mine.of(some)
            np.testing.assert_array_equal(seen.ids, expected.input_ids)
            np.testing.assert_array_equal(seen.mask, expected.attention_mask)
            assert seen.mask.dtype == np.int64
    assert mine.fixed is (multiple == most)


def test_a_template_stands_around_the_prompt(tiny):
    """Its end is what a long prompt loses first; that is told, too."""
    spec = manifest.read(tiny).tokenizers["clip"]
    pad = Pad(id=0, token="<pad>", side="left", multiple=4, most=8)
    window = Window(tiny, spec.model_copy(update={"prefix": "a ", "suffix": " left", "pad": pad}))
    seen = window.of(["red circle", "red", "red circle blue square", "red circle blue square red blue"])
    np.testing.assert_array_equal(
        seen.ids,
        [
            [0, 0, 1, 4, 5, 7, 9, 2],
            [0, 0, 0, 1, 4, 5, 9, 2],
            [1, 4, 5, 7, 6, 8, 9, 2],
            [1, 4, 5, 7, 6, 8, 5, 2],
        ],
    )
    np.testing.assert_array_equal(seen.mask, seen.ids != 0)
    assert seen.lost == ["", "", "", "blue"]
    assert window.of(["red circle blue square red"]).lost == ["left"]
    assert window.of([""]).ids.tolist() == [[1, 4, 9, 2]]


def test_the_longest_window_is_a_multiple():
    with pytest.raises(ValidationError, match="most 100 is no multiple of 80"):
        Pad(id=0, token="<pad>", side="right", multiple=80, most=100)
