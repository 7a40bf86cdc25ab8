"""Options that several commands of flux-export share: what is given beside a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)

_BESIDE = (
    click.option("--text-encoders", type=PATH, help="A diffusers folder with CLIP, T5 and their tokenizers."),
    click.option("--clip", type=PATH, help="A file with CLIP, such as clip_l.safetensors, or its folder."),
    click.option("--t5", type=PATH, help="A file with T5, such as t5xxl_fp16.safetensors, or its folder."),
    click.option("--vae", type=PATH, help="ae.safetensors, any file with a VAE, or a diffusers folder."),
    click.option("--tokenizers", help="A diffusers folder, a bundle, or a hub id: its tokenizers alone."),
    click.option("--scheduler", type=PATH, help="A scheduler_config.json, for another schedule."),
)


def beside_options(command: Command) -> Command:
    """What a checkpoint lacks, or is to have another of; `checkpoints.open.Beside` has the same names."""
    for option in reversed(_BESIDE):
        command = option(command)
    return command
