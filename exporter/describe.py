"""What the manifest says of a bundle: the model's numbers, its stages and files, and where all comes from."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from flux_trt.exporter.families.model import Model
from flux_trt.exporter.reuse import versions
from flux_trt.exporter.stamp import stamp
from flux_trt.runtime.bundle.manifest import (
    Adapters,
    File,
    GlueName,
    Manifest,
    MergedLora,
    Prompts,
    Provenance,
    Source,
    Stage,
    StageName,
    Tokenizer,
)


def describe(
    model: Model,
    sources: Mapping[Path, File],
    stages: Mapping[StageName, Stage],
    glue: Mapping[GlueName, Stage],
    tokenizers: Mapping[str, Tokenizer],
    adapters: Adapters | None,
    files: Mapping[str, File],
) -> Manifest:
    """The manifest of a bundle with these stages, listing of `files` those that it uses."""
    checkpoint, numbers = model.checkpoint, model.numbers()
    used = {path for each in (*stages.values(), *glue.values()) for path in (each.graph, *each.weights)}
    used |= {tokenizer.file for tokenizer in tokenizers.values()}
    used |= {adapters.modules} if adapters else set()
    order = [*model.parts, *(adapters.stages.values() if adapters else ())]
    return Manifest(
        family=model.family,
        variant=model.variant,
        tasks=model.tasks(stages),
        encoders=numbers.encoders,
        tokenizers=dict(tokenizers),
        prompts=numbers.prompts or Prompts(),
        model=numbers.model,
        schedule=numbers.schedule,
        guidance=numbers.guidance,
        sizes=numbers.sizes,
        defaults=numbers.defaults,
        stages={name: stages[name] for name in order if name in stages},
        glue=dict(glue),
        adapters=adapters,
        files={path: files[path] for path in sorted(used)},
        provenance=Provenance(
            checkpoint=checkpoint.source,
            beside=dict(checkpoint.beside),
            layout=checkpoint.layout,
            loras=[
                MergedLora(
                    file=str(lora.path),
                    bytes=sources[lora.path].bytes,
                    sha256=sources[lora.path].sha256,
                    strength=lora.strength,
                    form=lora.describe,
                )
                for lora in checkpoint.loras
                if lora.path in sources
            ],
            sources=[
                Source(name=f"{path.parent.name}/{path.name}", bytes=file.bytes, sha256=file.sha256)
                for path, file in sources.items()
            ],
            tool=f"flux_trt {version('flux_trt')}",
            packages=versions(),
            created=stamp(),
        ),
    )
