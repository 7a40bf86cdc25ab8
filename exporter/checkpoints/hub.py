"""A hub id: the diffusers folder of that repository, from the local hub cache or downloaded."""

from __future__ import annotations

from pathlib import Path

from flux_trt.exporter.checkpoints.diffusers import PARTS
from flux_trt.runtime.errors import CheckpointError

FILES = ["*.json", "*/*.json", "*/*.txt", "*/*.model", *(f"{part}/*.safetensors" for part in PARTS.values())]
"""Not the root's single files, which hold the same weights once more."""


def looks_like_hub_id(source: str) -> bool:
    """Whether it reads as owner/name."""
    owner, slash, name = source.partition("/")
    return bool(slash and owner and name) and "/" not in name and not source.startswith((".", "~"))


def snapshot(repository: str, revision: str | None) -> Path:
    """The folder of a repository: from the local cache, or downloaded without what no part needs.

    Raises:
        CheckpointError: no such repository, or no way to it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES))
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
