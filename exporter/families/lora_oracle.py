"""diffusers and PEFT as the oracle of merged LoRAs, fused by the public loader where it reads them.

diffusers passes over keys in silence that it does not know, and in two forms over scales, so its loader is an
oracle only where it has found every module that ours did and no more. Where it is none, the public model gets
the weights that we have merged, and a verification says so.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file
from torch import nn

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.tensorfile import read_header, read_metadata
from flux_trt.runtime.lora.term import Lora, Term

FUSED = "LoRA loaded and fused by diffusers"
MERGED = "LoRA merged by flux_trt"
COMPONENTS = {"transformer": "transformer", "clip": "text_encoder"}
"""Part -> what a pipeline calls it; diffusers loads LoRAs for no other."""


def with_loras(
    name: str,
    part: Part,
    plain: Callable[[Part], tuple[Any, str]],
    filled: Callable[[Part], tuple[Any, str]],
    modules: Callable[[Term], Iterable[str]],
) -> tuple[Any, str]:
    """A public model with a part's LoRAs in it, and who read and merged them.

    Args:
        name: of the part.
        part: with LoRAs.
        plain: makes the model of a part without.
        filled: makes it of the tensors that a part has.
        modules: the public model's modules that a term changes.
    """
    if part.plain is not None and name in COMPONENTS and all(_faithful(lora, name) for lora in part.loras):
        model, read_by = plain(part.plain)
        wanted = [{each for term in _of(lora, name) for each in modules(term)} for lora in part.loras]
        if _fuse(model, name, part.loras, wanted):
            return model.eval(), f"{read_by}, {FUSED}"
    model, read_by = filled(part)
    return model, f"{read_by}, {MERGED}"


def _of(lora: Lora, part: str) -> list[Term]:
    return [term for term in lora.terms if term.place.part == part]


def _faithful(lora: Lora, part: str) -> bool:
    """Whether diffusers keeps all that the file says of a part."""
    terms = _of(lora, part)
    if lora.unknown or any(term.kind != "LoRA" for term in terms):
        return False
    if any("magnitude" in term.tensors for term in terms):
        return lora.form == "diffusers" and lora.strength == 1
    return not (lora.form == "diffusers" and lora.scaled_by == "alpha")


def _fuse(model: nn.Module, part: str, loras: Iterable[Lora], wanted: Iterable[set[str]]) -> bool:
    """Let diffusers load and fuse the files; False: it did not find the same, and the model is spoilt."""
    from diffusers import FluxPipeline

    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    names, weights, component = [], [], COMPONENTS[part]
    with _quiet(), TemporaryDirectory() as folder:
        pipeline = FluxPipeline(**(dict.fromkeys(parts) | {component: model}))
        for number, (lora, modules) in enumerate(zip(loras, wanted, strict=True)):
            adapter = f"lora{number}"
            try:
                path = _alone(lora, part, Path(folder) / f"{adapter}.safetensors")
                _load(pipeline, component, path, adapter)
            except Exception:  # whatever it stumbles over, it cannot read the file
                return False
            found = {
                name for name, module in model.named_modules() if adapter in getattr(module, "lora_A", {})
            }
            if {name.removeprefix("text_model.") for name in found} != modules:
                return False
            names.append(adapter)
            weights.append(lora.strength)
        pipeline.set_adapters(names, weights)
        pipeline.fuse_lora(components=[component], adapter_names=names)
    return True


def _load(pipeline: Any, component: str, path: Path, adapter: str) -> None:
    """As `load_lora_weights`, which cannot do without a transformer."""
    if component == "transformer":
        pipeline.load_lora_weights(str(path), adapter_name=adapter, local_files_only=True)
        return
    asked = {"local_files_only": True, "return_alphas": True, "return_lora_metadata": True}
    state, alphas, metadata = pipeline.lora_state_dict(str(path), **asked)
    pipeline.load_lora_into_text_encoder(
        state,
        alphas,
        pipeline.text_encoder,
        prefix=component,
        adapter_name=adapter,
        metadata=metadata,
        _pipeline=pipeline,
    )


def _alone(lora: Lora, part: str, aside: Path) -> Path:
    """The file, or a copy of it without other parts: a pipeline that lacks those cannot load them."""
    others = tuple(f"{term.module}." for term in lora.terms if term.place.part != part)
    if not others:
        return lora.path
    kept = {name: info.read() for name, info in read_header(lora.path).items() if not name.startswith(others)}
    save_file(kept, aside, read_metadata(lora.path))
    return aside


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries think of a file is not what a verification says."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
