"""Tokenizers become files that the `tokenizers` package reads alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tokenizers import processors

from flux_trt.exporter.checkpoints.gguf_tokenizer import read_tokenizer
from flux_trt.exporter.checkpoints.quantised.gguf import is_gguf
from flux_trt.exporter.written import write_file
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import CheckpointError

FILES = ("tokenizer.json", "vocab.json", "spiece.model")
"""One of these has the vocabulary."""


PROMPT = "\N{OBJECT REPLACEMENT CHARACTER}prompt\N{OBJECT REPLACEMENT CHARACTER}"
"""What stands for a prompt while a template is looked at."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """The conversation that a language model reads a prompt in; its encoder takes a mask, too."""

    messages: Callable[[str], Sequence[Mapping[str, Any]]]
    """Prompt -> what is given to the tokenizer's chat template."""
    options: Mapping[str, Any]
    """Of the template."""
    prefix: str
    suffix: str
    """What the published template puts around a prompt, where a tokenizer has none."""
    marks: tuple[str, ...]
    """Tokens that the tokenizer must know."""
    without: tuple[str, ...] = ()
    """What is taken out of prompts."""


@dataclass(frozen=True)
class Padding:
    """How a family fills prompts up and cuts them."""

    limit: int
    """Tokens of the longest prompt, if the tokenizer does not set a lower number."""
    token: str
    """Where the tokenizer names none."""
    side: Literal["left", "right"] = "right"
    """Where the tokenizer's config does not say."""
    chat: Chat | None = None
    """None: a prompt is read as it is, and padding like any other text."""
    multiple: int | None = None
    """Prompts are padded to the next multiple; None: all to one length."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer that works, and how prompts are padded."""

    name: str
    backend: Any
    pad: manifest.Pad
    chat: Chat | None = None
    """With the template that this tokenizer has."""

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def write(self, folder: Path) -> manifest.Tokenizer:
        """Write `tokenizers/<name>.json` into the bundle `folder`, as transformers itself would tokenise."""
        inside = f"tokenizers/{self.name}.json"
        (folder / "tokenizers").mkdir(exist_ok=True)
        write_file(folder / inside, self.backend.to_str(pretty=True).encode())
        if self.chat is None:
            return manifest.Tokenizer(file=inside, prefix="", suffix="", pad=self.pad, mask=False)
        return manifest.Tokenizer(
            file=inside,
            prefix=self.chat.prefix,
            suffix=self.chat.suffix,
            pad=self.pad,
            mask=True,
            without=list(self.chat.without),
        )


def load_tokenizer(source: Path, name: str, padding: Padding) -> LoadedTokenizer:
    """Read a tokenizer and try it.

    Args:
        source: a transformers tokenizer's folder, a bundle's tokenizer file, or a GGUF file with T5.
        name: of the text stage.
        padding: the family's.

    Raises:
        CheckpointError: no fast tokenizer can be made of it, or it does not know its padding.
    """
    from transformers import AutoTokenizer

    if source.is_file():
        return (_of_gguf if is_gguf(source) else _of_bundle)(source, name, padding)
    if not has_vocabulary(source):
        raise CheckpointError(f"the tokenizer {source} has none of {', '.join(FILES)}; copy it again")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        backend = tokenizer.backend_tokenizer
    except (OSError, ValueError, AttributeError, ImportError) as fault:
        said = " ".join(str(fault).split())
        raise CheckpointError(f"cannot load the tokenizer {source} ({said[:200]}); check its files") from None
    backend.no_padding()
    backend.no_truncation()
    token = tokenizer.pad_token or padding.token
    number = backend.token_to_id(token)
    if number is None or not backend.encode("a").ids:
        raise CheckpointError(f"the tokenizer {source} does not know {token}; it is not the {name}'s")
    longest = min(tokenizer.model_max_length, padding.limit)
    pad = _pad(number, token, longest, _side(source) or padding.side, padding.multiple)
    chat = padding.chat
    if chat is not None:
        _refuse_other(source, backend, chat)
        prefix, suffix = _template(source, tokenizer, chat)
        chat = replace(chat, prefix=prefix, suffix=suffix)
    return LoadedTokenizer(name, backend, pad, chat)


def _refuse_other(source: Path, backend: Any, chat: Chat) -> None:
    """See that a tokenizer is one that knows the template, and let it add no tokens of its own to it."""
    if strange := [mark for mark in chat.marks if len(backend.encode(mark, add_special_tokens=False)) != 1]:
        raise CheckpointError(
            f"the tokenizer {source} does not know {strange[0]}; give the encoder's own with --tokenizers"
        )
    if backend.encode("a").ids != backend.encode("a", add_special_tokens=False).ids:
        backend.post_processor = processors.Sequence([])  # the template has the start token already


def _side(source: Path) -> Literal["left", "right"] | None:
    """The side that a tokenizer's own config pads on; transformers fills in one where it says nothing."""
    file = source / "tokenizer_config.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8")).get("padding_side")
    except (OSError, ValueError, AttributeError):
        return None
    return said if said in ("left", "right") else None


def _template(source: Path, tokenizer: Any, chat: Chat) -> tuple[str, str]:
    """What the tokenizer's own template puts around a prompt, or the published one's where it has none."""
    if not tokenizer.chat_template:
        return chat.prefix, chat.suffix
    try:
        text = tokenizer.apply_chat_template(chat.messages(PROMPT), tokenize=False, **chat.options)
        prefix, suffix = text.split(PROMPT)
    except Exception as fault:  # a template is a program of its own
        said = " ".join(str(fault).split())
        raise CheckpointError(
            f"the chat template of {source} takes no plain prompt ({said[:200]}); give another --tokenizers"
        ) from None
    return prefix, suffix


def has_vocabulary(folder: Path) -> bool:
    """Whether there is a tokenizer in the folder."""
    return any((folder / file).is_file() for file in FILES)


def bundle_tokenizers(root: Path) -> dict[str, Path]:
    """Text stage -> tokenizer file, of a bundle; none where `root` is no bundle.

    Raises:
        BundleError: a bundle that cannot be read.
    """
    if not (root / manifest.NAME).is_file():
        return {}
    return {name: root / spec.file for name, spec in manifest.read(root).tokenizers.items()}


def _of_bundle(file: Path, name: str, padding: Padding) -> LoadedTokenizer:
    """A tokenizer that another bundle has already; its padding stands in that bundle's manifest."""
    from tokenizers import Tokenizer

    spec = manifest.read(file.parents[1]).tokenizers[name]
    chat = padding.chat
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as fault:  # the library raises bare Exception
        raise CheckpointError(f"{file} is not a tokenizer ({fault}); give another bundle") from None
    longest = min(spec.pad.most, padding.limit)
    pad = _pad(spec.pad.id, spec.pad.token, longest, spec.pad.side, padding.multiple)
    if chat is not None:
        _refuse_other(file, backend, chat)
        chat = replace(chat, prefix=spec.prefix, suffix=spec.suffix)
    return LoadedTokenizer(name, backend, pad, chat)


def _of_gguf(file: Path, name: str, padding: Padding) -> LoadedTokenizer:
    """A tokenizer that lies in a GGUF file's metadata, which says nothing of the longest prompt."""
    made = read_tokenizer(file)
    if not made.backend.encode("a").ids:
        raise CheckpointError(f"the vocabulary in {file} makes nothing of a text; it is not the {name}'s")
    return LoadedTokenizer(
        name, made.backend, _pad(made.backend.token_to_id(made.pad), made.pad, padding.limit)
    )


def _pad(
    number: int,
    token: str,
    length: int,
    side: Literal["left", "right"] = "right",
    multiple: int | None = None,
) -> manifest.Pad:
    """All prompts get one length, or the next multiple of up to `length` tokens."""
    if multiple is None or multiple > length:
        return manifest.Pad(id=number, token=token, side=side, multiple=length, most=length)
    return manifest.Pad(
        id=number, token=token, side=side, multiple=multiple, most=length // multiple * multiple
    )
