"""Tokenizers become files that the `tokenizers` package reads alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_trt.exporter.checkpoints.gguf_tokenizer import read_tokenizer
from flux_trt.exporter.checkpoints.quantised.gguf import is_gguf
from flux_trt.exporter.written import write_file
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import CheckpointError

FILES = ("tokenizer.json", "vocab.json", "spiece.model")
"""One of these has the vocabulary."""


@dataclass(frozen=True)
class Padding:
    """How a family fills prompts up and cuts them."""

    limit: int
    """Tokens of the longest prompt, if the tokenizer does not set a lower number."""
    token: str
    """Where the tokenizer names none."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer that works, and how prompts are padded."""

    name: str
    backend: Any
    pad: manifest.Pad

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def write(self, folder: Path) -> manifest.Tokenizer:
        """Write `tokenizers/<name>.json` into the bundle `folder`, as transformers itself would tokenise."""
        inside = f"tokenizers/{self.name}.json"
        (folder / "tokenizers").mkdir(exist_ok=True)
        write_file(folder / inside, self.backend.to_str(pretty=True).encode())
        return manifest.Tokenizer(file=inside, prefix="", suffix="", pad=self.pad, mask=False)


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
    if not any((source / file).is_file() for file in FILES):
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
    return LoadedTokenizer(name, backend, _pad(number, token, min(tokenizer.model_max_length, padding.limit)))


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
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as fault:  # the library raises bare Exception
        raise CheckpointError(f"{file} is not a tokenizer ({fault}); give another bundle") from None
    pad = _pad(spec.pad.id, spec.pad.token, min(spec.pad.most, padding.limit))
    return LoadedTokenizer(name, backend, pad)


def _of_gguf(file: Path, name: str, padding: Padding) -> LoadedTokenizer:
    """A tokenizer that lies in a GGUF file's metadata, which says nothing of the longest prompt."""
    made = read_tokenizer(file)
    if not made.backend.encode("a").ids:
        raise CheckpointError(f"the vocabulary in {file} makes nothing of a text; it is not the {name}'s")
    return LoadedTokenizer(
        name, made.backend, _pad(made.backend.token_to_id(made.pad), made.pad, padding.limit)
    )


def _pad(number: int, token: str, length: int) -> manifest.Pad:
    """All prompts get one length."""
    return manifest.Pad(id=number, token=token, side="right", multiple=length, most=length)
