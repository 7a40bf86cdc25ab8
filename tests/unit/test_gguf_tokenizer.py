"""The vocabulary in a T5's GGUF file gives the ids that transformers' own tokenizer gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import official_repositories as official
import pytest
from checkpoints import NANO
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from t5_gguf import nano_vocabulary, write

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.gguf_tokenizer import read_tokenizer
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.checkpoints.tokenizer import Padding, load_tokenizer
from flux_trt.runtime.errors import CheckpointError

PADDING = Padding(512, "<pad>")
PROMPTS = [
    "",
    " ",
    "a red circle on a white background",
    "  two  spaces   before, between and after  ",
    "tabs\tand\nnew\r\nlines",
    "naïve café, “quotes” — dash… №5 ½ ﬁne",
    "Ｆｕｌｌ ｗｉｄｔｈ\u3000①②③ \u00a0 no-break\u200bzero\ufeffwidth",
    "日本語のプロンプト、赤い円",
    "🙂👩‍👩‍👧 e\u0301 \u212b",
    "red </s> circle <pad> and <unk> <extra_id_0>x<extra_id_99> [PAD3]",
    "\u2581 its own \u2581\u2581 sign",
    "words and commas, " * 200 + "x" * 500,
]


@pytest.fixture(scope="module", params=["trained", "official size"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 tokenizer's folder: one that sentencepiece trained with T5's own rules, or one of T5's size."""
    made = tmp_path_factory.mktemp("t5")
    if request.param == "official size":
        official.write_t5_vocabulary(made)
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString((made / "spiece.model").read_bytes())
        proto.trainer_spec.unk_id = 2  # the converter asks it, all others the pieces' types
        (made / "spiece.model").write_bytes(proto.SerializeToString())
        return made
    (made / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    text = "\n".join(Path(__file__).read_text().splitlines() * 3)
    (made / "text").write_text(text)
    train = (
        "import sentencepiece, sys; sentencepiece.SentencePieceTrainer.Train(input=sys.argv[1] + '/text', "
        "model_prefix=sys.argv[1] + '/spiece', model_type='unigram', vocab_size=300, hard_vocab_limit=False, "
        "pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name='nmt_nfkc', num_threads=1)"
    )
    subprocess.run([sys.executable, "-c", train, str(made)], check=True, capture_output=True)
    return made


def test_ids_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    """Of T5Tokenizer, which a diffusers folder is read with, and but for special tokens of its converter."""
    from transformers.convert_slow_tokenizer import T5Converter

    count = SentencePieceProcessor(model_file=str(folder / "spiece.model")).vocab_size()
    path = write(tmp_path / "t5.gguf", folder, count + 128)
    ours, theirs = load_tokenizer(path, "t5", PADDING), load_tokenizer(folder, "t5", PADDING)
    old = SimpleNamespace(
        vocab_file=str(folder / "spiece.model"), _extra_ids=100, convert_tokens_to_ids=lambda token: 1
    )
    converted = T5Converter(old).converted()
    assert (ours.pad, ours.vocabulary) == (theirs.pad, theirs.vocabulary) == (ours.pad, count + 100)
    # T5's own charsmap makes spaces of these signs; without one T5Tokenizer still splits there.
    has_charsmap = "Precompiled" in ours.backend.to_str()
    for prompt in PROMPTS:
        found = ours.backend.encode(prompt)
        if has_charsmap or not any(sign in prompt for sign in "\t\n\u3000\u00a0\u2581"):
            assert found.ids == theirs.backend.encode(prompt).ids, prompt
        if "<unk>" not in prompt:
            assert found.ids == converted.encode(prompt).ids, prompt
        again = ours.backend.decode(found.ids, skip_special_tokens=False)
        assert again == theirs.backend.decode(found.ids, skip_special_tokens=False)
    assert json.loads(ours.backend.to_str())["normalizer"] == json.loads(converted.to_str())["normalizer"]


def test_a_vocabulary_without_filling_has_no_sentinels(folder: Path, tmp_path: Path) -> None:
    count = SentencePieceProcessor(model_file=str(folder / "spiece.model")).vocab_size()
    found = load_tokenizer(write(tmp_path / "t5.gguf", folder, count + 3), "t5", PADDING)
    assert found.vocabulary == count


def test_sentinels_that_an_added_tokens_file_named(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "plain.gguf", folder, 0)
    plain = read_tokenizer(path).backend
    count = plain.get_vocab_size()
    pieces = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    said = {
        "tokens": [pieces.IdToPiece(n) for n in range(count)] + ["<extra_id_0>"],
        "scores": [pieces.GetScore(n) for n in range(count)] + [-1000.0],
        "token_type": [3, 3, 2] + [1] * (count - 3) + [4],
    }
    added = read_tokenizer(write(tmp_path / "added.gguf", folder, 0, **said)).backend
    assert added.encode("a <extra_id_0>").ids[-2:] == [count, 1]
    for prompt in PROMPTS:
        if "extra_id" not in prompt:
            assert added.encode(prompt).ids == plain.encode(prompt).ids


def test_spaces_that_are_kept(folder: Path, tmp_path: Path) -> None:
    changed = {"remove_extra_whitespaces": False, "add_space_prefix": False}
    found = read_tokenizer(write(tmp_path / "t5.gguf", folder, 0, **changed)).backend
    assert found.encode("a  b ").tokens == ["a", "\u2581", "\u2581", "b", "\u2581", "</s>"]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"tokens": None}, "has no T5 vocabulary in its metadata; give .* with --tokenizers"),
        ({"model": None}, "has no T5 vocabulary in its metadata"),
        ({"model": "llama"}, "has no T5 vocabulary in its metadata"),
        ({"tokens": "abc"}, "the lists of its vocabulary are not all there or not of one length"),
        ({"scores": None}, "the lists of its vocabulary are not all there"),
        ({"token_type": [1]}, "the lists of its vocabulary are not all there or not of one length"),
        ({"tokens": ["a"], "scores": [1], "token_type": [1]}, "token 'a' of its vocabulary has no score"),
        ({"tokens": ["a"], "scores": [float("nan")], "token_type": [1]}, "the score of 'a' .* is not finite"),
        ({"tokens": ["a"], "scores": [0.5], "token_type": [1]}, "of 1 tokens lacks its own special ones"),
        ({"unknown_token_id": 1 << 30}, "lacks its own special ones"),
        ({"eos_token_id": "</s>"}, "its eos_token_id is no number"),
        ({"precompiled_charsmap": b"\x00\x04\x00\x00abc"}, "its precompiled_charsmap is cut off"),
        ({"precompiled_charsmap": bytes(2000)}, "its precompiled_charsmap is cut off"),
        ({"precompiled_charsmap": "abc"}, "its precompiled_charsmap is not made of bytes"),
    ],
)
def test_no_vocabulary_is_one_line(
    tmp_path: Path, small: Path, changed: dict[str, object], line: str
) -> None:
    path = write(tmp_path / "t5.gguf", small, 0, **changed)
    with pytest.raises(CheckpointError, match=line) as told:
        load_tokenizer(path, "t5", PADDING)
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano_vocabulary(tmp_path_factory.mktemp("small"))


def test_a_t5_in_gguf_brings_its_tokenizer(
    checkpoint: Callable[[str], Path], small: Path, tmp_path: Path
) -> None:
    """Only where none is given; and a build that lacks one is refused before any work."""
    path = write(tmp_path / "t5.gguf", small, 0)
    transformer = checkpoint("dev-like") / "transformer"
    assert open_checkpoint(str(transformer), t5=path).tokenizers == {"t5": path}
    assert open_checkpoint(str(transformer), tokenizers=str(path)).tokenizers == {"t5": path}
    given = open_checkpoint(str(transformer), t5=path, tokenizers=str(NANO)).tokenizers
    assert given["t5"] == NANO / "tokenizer_2"
    ours, theirs = (load_tokenizer(each, "t5", PADDING) for each in (path, given["t5"]))
    for prompt in ("a red circle", "two  spaces", ""):
        assert ours.backend.encode(prompt).ids == theirs.backend.encode(prompt).ids
    bare = write(tmp_path / "bare.gguf", small, 0, tokens=None)
    with pytest.raises(CheckpointError, match=r"bare.gguf has no T5 vocabulary in its metadata; give"):
        build(str(checkpoint("dev-like")), tmp_path / "bundle", tokenizers=str(bare))
    assert not (tmp_path / "bundle").exists()
