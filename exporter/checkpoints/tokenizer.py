"""Tokenizers become files that the `tokenizers` package reads alone."""

from __future__ import annotations

from pathlib import Path

from flux_trt.runtime.bundle.manifest import Pad, Tokenizer
from flux_trt.runtime.errors import CheckpointError


def export_tokenizer(source: Path, folder: Path, name: str, limit: int) -> Tokenizer:
    """Write `tokenizers/<name>.json` as transformers itself would tokenise, special tokens included.

    Args:
        source: a transformers tokenizer folder.
        folder: of the bundle being written.
        name: clip or t5.
        limit: of the prompt's length in tokens, if the tokenizer does not set a lower one.

    Raises:
        CheckpointError: no fast tokenizer can be made from the folder.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        backend = tokenizer.backend_tokenizer
    except (OSError, ValueError, AttributeError, ImportError) as fault:
        said = str(fault).splitlines()[0]
        raise CheckpointError(f"cannot load the tokenizer {source} ({said}); check its files") from None
    backend.no_padding()
    backend.no_truncation()
    inside = f"tokenizers/{name}.json"
    (folder / "tokenizers").mkdir(exist_ok=True)
    backend.save(str(folder / inside))
    length = min(tokenizer.model_max_length, limit)
    pad = Pad(
        id=tokenizer.pad_token_id, token=tokenizer.pad_token, side="right", multiple=length, most=length
    )
    return Tokenizer(file=inside, prefix="", suffix="", pad=pad, mask=False)
