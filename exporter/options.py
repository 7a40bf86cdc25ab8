"""Options that several commands of flux-export share: what is given beside a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)

_BESIDE = (
    click.option(
        "--text-encoders",
        type=PATH,
        help="A diffusers folder with encoders and tokenizers, an encoder's folder, or its file.",
    ),
    click.option("--clip", type=PATH, help="A file with CLIP, such as clip_l.safetensors, or its folder."),
    click.option("--t5", type=PATH, help="A file with T5, such as t5xxl_fp16.safetensors, or its folder."),
    click.option("--vae", type=PATH, help="ae.safetensors, any file with a VAE, or a diffusers folder."),
    click.option(
        "--tokenizers", help="A diffusers folder, bundle, hub id or T5 in GGUF: its tokenizers alone."
    ),
    click.option("--scheduler", type=PATH, help="A scheduler_config.json, for another schedule."),
    click.option(
        "--lora",
        metavar="FILE[:STRENGTH]",
        multiple=True,
        help="A LoRA of any form to merge into the weights; several are merged in order.  [strength: 1]",
    ),
    click.option(
        "--lora-partial", is_flag=True, help="Leave out what of a LoRA finds no place in the model."
    ),
)

CASES = """\b
What you have, and what CHECKPOINT and the options are:
  nothing yet             black-forest-labs/FLUX.1-dev (33.7 GB)
  a diffusers folder      its path
  flux1-dev.safetensors   the file --text-encoders FOLDER --vae ae.safetensors
  loose encoders          the file --clip clip_l.safetensors --vae ae.safetensors
                          --t5 t5xxl_fp16.safetensors --tokenizers WHERE
  an all-in-one file      the file (17 GB) --tokenizers WHERE
  fp8, NF4, GGUF          as flux1-dev.safetensors; GGUF needs flux_trt[gguf]
  T5 in GGUF              --t5 t5.gguf: its tokenizer comes with it
  FLUX.2                  likewise: a hub id, a folder, or a file of the
                          transformer --text-encoders qwen_3_4b.safetensors
                          --vae ae.safetensors --tokenizers WHERE
  Krea, Depth, Kontext    also --variant krea, depth, kontext
  a LoRA                  the model and --lora style.safetensors:0.8
  LoRAs to switch         the model and --lora-rank 16; then flux-run --lora

\b
FOLDER is a diffusers folder of the family. WHERE is that, a bundle, or a hub
id, of which only the tokenizers are fetched. --dry-run looks, in seconds.
"""
"""Under the help of `build`; docs/checkpoints.md has the whole table."""


def beside_options(command: Command) -> Command:
    """What a checkpoint lacks, or is to have another of; `checkpoints.open.Beside` has the same names."""
    for option in reversed(_BESIDE):
        command = option(command)
    return command


def there(what: str) -> str:
    """A file or folder by its name; what is not there is refused, a hub id with what looks at it."""
    if not Path(what).exists():
        raise click.ClickException(
            f"nothing is at {what}; give a bundle, checkpoint or LoRA. Of a hub id "
            "flux-export build ID --out DIR --dry-run tells the same"
        )
    return what
