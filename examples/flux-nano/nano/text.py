"""The two text encoders, taught to read captions and instructions before the DiT ever sees them.

FLUX's encoders come pretrained; so do these. Every T5 token learns to tell the colour, shape and place of the
object it speaks of, and CLIP's pooled vector learns to tell the whole scene. Without this the DiT has to find
out by itself which attribute belongs to which place, and that is what it learns last.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from nano.bundle import new_clip, new_t5
from nano.edit import Edit, sample_edit
from nano.phase import Phase
from nano.scene import BACKGROUNDS, OBJECT_COLOURS, PLACES, SHAPES, Object, Scene, blur, sample_split
from nano.vocabulary import CLIP_LENGTH, T5_LENGTH, clip_tokenizer, t5_tokenizer

BATCH = 256
LENGTHS = (
    20,
    24,
    T5_LENGTH,
    T5_LENGTH,
    T5_LENGTH,
    48,
    128,
    512,
)  # T5 lengths, so that padding does not matter

_COLOURS, _SHAPES, _PLACES, _BACKGROUNDS = map(tuple, (OBJECT_COLOURS, SHAPES, PLACES, BACKGROUNDS))
# What one T5 token tells: of its own object, of the scene, and of the change asked for.
TOKEN_TAGS = {
    "colour": _COLOURS,
    "shape": _SHAPES,
    "place": _PLACES,
    "background": _BACKGROUNDS,
    "new colour": _COLOURS,
    "new shape": _SHAPES,
    "new background": _BACKGROUNDS,
}
# What CLIP's pooled vector tells: both objects in the order named, and the rest.
POOLED_TAGS = {
    f"{tag} {index}": TOKEN_TAGS[tag] for index in (1, 2) for tag in ("colour", "shape", "place")
} | {tag: TOKEN_TAGS[tag] for tag in ("background", "new colour", "new shape", "new background")}
Tags = dict[str, str | None]


class Encoders(nn.Module):
    """CLIP and T5 with the heads that they are pretrained with; only the encoders go into the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.clip: CLIPTextModel = new_clip()
        self.t5: T5EncoderModel = new_t5()
        self.token_heads = _heads(TOKEN_TAGS, width=128)
        self.pooled_heads = _heads(POOLED_TAGS, width=64)

    @classmethod
    def of(cls, clip: CLIPTextModel, t5: T5EncoderModel) -> Encoders:
        """Trained encoders, frozen; their heads are new and mean nothing."""
        encoders = cls()
        encoders.clip, encoders.t5 = clip, t5
        return encoders.to(clip.device).eval().requires_grad_(False)

    def embed(self, texts: list[str], length: int = T5_LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
        """(pooled [B, 64], text [B, length, 128]), with FLUX's padding: no attention mask anywhere."""
        device = next(self.parameters()).device
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        clip_ids = _tokenizers()[0](texts, max_length=CLIP_LENGTH, **options).input_ids.to(device)
        t5_ids = _tokenizers()[1](texts, max_length=length, **options).input_ids.to(device)
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids).last_hidden_state

    def loss(self, samples: list[tuple[str, list[Tags], Tags]], length: int) -> torch.Tensor:
        """Cross-entropy of all heads; padding tells what the last tag says."""
        texts, tokens, whole = zip(*samples, strict=True)
        pooled, text = self.embed(list(texts), length)
        padded = [tags + [{**tags[-1]}] * (length - len(tags)) for tags in tokens]
        total = torch.zeros((), device=text.device)
        for tag, names in TOKEN_TAGS.items():
            target = torch.tensor([[_index(names, tags.get(tag)) for tags in row] for row in padded])
            total += F.cross_entropy(
                self.token_heads[tag](text).flatten(0, 1).float(), target.flatten().to(text.device)
            )
        for tag, names in POOLED_TAGS.items():
            target = torch.tensor([_index(names, tags.get(tag)) for tags in whole])
            total += F.cross_entropy(self.pooled_heads[tag](pooled).float(), target.to(text.device))
        return total


def train_text(runs: Path, minutes: float, device: torch.device, seed: int = 2) -> Encoders:
    """Encoders that read, frozen."""
    torch.manual_seed(seed)
    encoders = Encoders().to(device)
    phase = Phase(runs, "text", encoders, minutes, rate=2e-3, hold=0.3, decay=0.99)
    rng = np.random.default_rng([seed, phase.step])
    for _ in phase:
        length = int(rng.choice(LENGTHS))
        samples = [
            sample_text(rng)
            for _ in range(max(16, BATCH * min(T5_LENGTH, T5_LENGTH**2 // length) // T5_LENGTH))
        ]
        with torch.autocast(device.type, torch.bfloat16):
            loss = encoders.loss(samples, length)
        phase.update(loss)
    phase.use_average()
    return encoders.eval().requires_grad_(False)


def sample_text(rng: np.random.Generator) -> tuple[str, list[Tags], Tags]:
    """A random text, the tags of its T5 tokens (the last is the end and the padding), and of the whole."""
    kind = rng.random()
    if kind < 0.03:
        return "", [{}], {}
    if kind < 0.33:
        text, tokens, whole = _tag_edit(sample_edit(rng))
    else:
        scene = sample_split(rng, held_out=False)
        text, tokens, whole = _tag_scene(blur(scene, rng) if kind < 0.45 else scene)
    return vary(text, rng), tokens, whole


def vary(text: str, rng: np.random.Generator) -> str:
    """Now and then begin with a capital, as people do."""
    return text[:1].upper() + text[1:] if rng.random() < 0.1 else text


def _tag_scene(scene: Scene) -> tuple[str, list[Tags], Tags]:
    common: Tags = {"background": scene.background}
    tokens: list[Tags] = []
    whole = dict(common)
    for index, thing in enumerate(scene.objects, 1):
        tags = _tag_object(thing)
        tokens += [common] * (index - 1) + [common | tags] * len(
            str(thing).split()
        )  # "and" speaks of no object
        whole |= {f"{tag} {index}": value for tag, value in tags.items()}
    return scene.caption, tokens + [common] * (len(scene.caption.split()) - len(tokens) + 1), whole


def _tag_edit(edit: Edit) -> tuple[str, list[Tags], Tags]:
    if edit.index is None:
        tags: Tags = {"new background": edit.target.background}
        whole = tags
    else:
        old, new = edit.source.objects[edit.index], edit.target.objects[edit.index]
        change: Tags = {f"new {edit.kind}": getattr(new, edit.kind)}
        tags = {"colour": old.colour, "shape": old.shape} | change
        whole = {"colour 1": old.colour, "shape 1": old.shape} | change
    return edit.instruction, [tags] * (len(edit.instruction.split()) + 1), whole


def _tag_object(thing: Object) -> Tags:
    return {"colour": thing.colour, "shape": thing.shape, "place": thing.place}


def _heads(tags: dict[str, tuple[str, ...]], width: int) -> nn.ModuleDict:
    return nn.ModuleDict({tag: nn.Linear(width, len(names) + 1) for tag, names in tags.items()})


def _index(names: tuple[str, ...], name: str | None) -> int:
    return names.index(name) if name is not None else len(names)


@cache
def _tokenizers():  # type: ignore[no-untyped-def]
    return clip_tokenizer(), t5_tokenizer()
