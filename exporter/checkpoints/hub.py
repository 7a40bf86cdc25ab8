"""A hub id: the diffusers folder of that repository, from the local hub cache or downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flux_trt.exporter.checkpoints.diffusers import PARTS
from flux_trt.exporter.checkpoints.diffusers import TOKENIZERS as TOKENIZER_FOLDERS
from flux_trt.runtime.errors import CheckpointError

FILES = [
    "*.json",
    "*/*.json",
    "*/*.jinja",
    "*/*.txt",
    "*/*.model",
    *(f"{part}/*.safetensors" for part in PARTS.values()),
]
"""Of a whole repository: not the root's single files, which hold the same weights once more."""
TOKENIZERS = ["*.json", *(f"{folder}/*" for folder in dict.fromkeys(TOKENIZER_FOLDERS.values()))]
"""Of a repository whose tokenizers alone are wanted."""


def looks_like_hub_id(source: str) -> bool:
    """Whether it reads as owner/name."""
    owner, slash, name = source.partition("/")
    return bool(slash and owner and name) and "/" not in name and not source.startswith((".", "~"))


def snapshot(repository: str, revision: str | None, files: Sequence[str] = FILES) -> Path:
    """The folder of a repository: from the local cache, or downloaded without what no part needs.

    Of a repository that is a transformer alone, with its config and weights at the root, those are brought.

    Raises:
        CheckpointError: no such repository, or no way to it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
        if (
            files is FILES
            and (folder / "config.json").is_file()
            and not (folder / "model_index.json").is_file()
        ):
            root = [*FILES, "*.safetensors"]
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=root))
        return folder
    except HFValidationError:
        raise CheckpointError(
            f"no checkpoint at {repository}, and it is not a hub id; check the path"
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{repository} is neither a path nor in the hub cache, and the hub cannot be reached; "
            "check the name, the connection and HF_HUB_OFFLINE"
        ) from None
    except HfHubHTTPError as fault:
        said = str(fault).splitlines()[0]
        raise CheckpointError(f"the hub refused {repository} ({said}); log in with `hf auth login`") from None
