"""Tokenizers become files that the `tokenizers` package reads alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import CheckpointError

FILES = ("tokenizer.json", "vocab.json", "spiece.model")
"""One of these has the vocabulary."""


@dataclass(frozen=True)
class Window:
    """How a family pads and cuts prompts."""

    limit: int
    """Tokens of the longest prompt, if the tokenizer does not set a lower number."""
    pad_token: str
    """Where the tokenizer names none."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer that works, and how prompts are padded."""

    name: str
    backend: Any
    length: int
    pad_id: int
    pad_token: str

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def write(self, folder: Path) -> manifest.Tokenizer:
        """Write `tokenizers/<name>.json` into the bundle `folder`, as transformers itself would tokenise."""
        inside = f"tokenizers/{self.name}.json"
        (folder / "tokenizers").mkdir(exist_ok=True)
        self.backend.save(str(folder / inside))
        return manifest.Tokenizer(
            file=inside, length=self.length, pad_id=self.pad_id, pad_token=self.pad_token
        )


def load_tokenizer(source: Path, name: str, window: Window) -> LoadedTokenizer:
    """Read a transformers tokenizer folder and try it.

    Args:
        source: the folder.
        name: of the text stage.
        window: the family's padding and longest prompt.

    Raises:
        CheckpointError: no fast tokenizer can be made from the folder, or it does not know its padding.
    """
    from transformers import AutoTokenizer

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
    pad_token = tokenizer.pad_token or window.pad_token
    pad_id = backend.token_to_id(pad_token)
    if pad_id is None or not backend.encode("a").ids:
        raise CheckpointError(f"the tokenizer {source} does not know {pad_token}; it is not the {name}'s")
    length = min(tokenizer.model_max_length, window.limit)
    return LoadedTokenizer(name, backend, length, pad_id, pad_token)
