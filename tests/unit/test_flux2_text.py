"""How FLUX.2's prompts are dressed, padded and cut; and how masks reach its tokens."""

from __future__ import annotations

import json
from pathlib import Path

import flux2_checkpoints as flux2
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from family_rules import FLUX2_NOISE

from flux_trt.exporter.checkpoints.tokenizer import load_tokenizer
from flux_trt.exporter.families.encoder import padding_of
from flux_trt.exporter.families.flux2.variants import MISTRAL3, QWEN3
from flux_trt.exporter.families.language import Language
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.rules import Inpaint, Tokenizer
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.tasks.inpaint import coarse

FAMILIES = {"klein": QWEN3, "dev": MISTRAL3}


def saved(folder: Path, family: str, side: str | None) -> Path:
    """A tokenizer's folder; with no side its config does not name one."""
    flux2.tokenizer(family, side or "right").save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text())
    if side is None:
        said.pop("padding_side", None)
    else:
        said["padding_side"] = side
    path.write_text(json.dumps(said))
    return folder


def written(folder: Path, out: Path, language: Language) -> Tokenizer:
    out.mkdir()
    return load_tokenizer(folder, "text", padding_of(language)).write(out)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right", None])
def test_a_side_that_is_named_is_taken_and_else_the_familys(
    tmp_path: Path, family: str, side: str | None
) -> None:
    language = FAMILIES[family]
    found = written(saved(tmp_path / "tokenizer", family, side), tmp_path / "bundle", language)
    assert found.pad.side == (side or {"klein": "right", "dev": "left"}[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_is_the_published_one(tmp_path: Path, family: str) -> None:
    """Rendered of the tokenizer's own, and where it has none, from the family's table."""
    language = FAMILIES[family]
    folder = saved(tmp_path / "tokenizer", family, None)
    found = written(folder, tmp_path / "bundle", language)
    assert (found.prefix, found.suffix, found.mask) == (language.prefix, language.suffix, True)
    (folder / "chat_template.jinja").unlink()
    assert written(folder, tmp_path / "without", language).model_copy(update={"file": found.file}) == found


def test_the_system_message_is_diffusers_own() -> None:
    assert MISTRAL3.system == SYSTEM_MESSAGE


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """Start tokens come from the template, never twice; signs of pictures are taken out of prompts."""
    language = FAMILIES[family]
    spec = written(saved(tmp_path / "tokenizer", family, None), tmp_path / "bundle", language)
    tokenizer = flux2.tokenizer(family, language.side)
    prompts = ["a red circle", "", "[IMG]two [IMG]squares", "ünïcödé 日本 <|im_end|>", "word " * 99]
    seen = Window(tmp_path / "bundle", spec).of(prompts)
    clean = [prompt.replace("[IMG]", "") if family == "dev" else prompt for prompt in prompts]
    chat = padding_of(language).chat
    assert chat is not None
    theirs = tokenizer.apply_chat_template(
        [chat.messages(prompt) for prompt in clean],
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        padding="max_length",
        truncation=True,
        max_length=flux2.LENGTH[family],
        **language.options,
    )
    np.testing.assert_array_equal(seen.ids, theirs["input_ids"])
    np.testing.assert_array_equal(seen.mask, theirs["attention_mask"])


def test_a_bundles_tokenizer_serves_another_bundle(tmp_path: Path) -> None:
    """Its template and side stand in the bundle's manifest."""
    import tiny_bundle

    spec = written(saved(tmp_path / "tokenizer", "dev", "right"), tmp_path / "made", MISTRAL3)
    root = tiny_bundle.build(tmp_path / "bundle")
    (tmp_path / "made" / spec.file).rename(root / "tokenizers" / "text.json")
    said = json.loads((root / manifest.NAME).read_text())
    said["tokenizers"]["text"] = spec.model_dump(mode="json")
    said["files"] = tiny_bundle.files(root)
    (root / manifest.NAME).write_text(json.dumps(said))
    found = load_tokenizer(root / "tokenizers" / "text.json", "text", padding_of(MISTRAL3))
    (tmp_path / "again").mkdir()
    assert found.write(tmp_path / "again") == spec


@pytest.mark.parametrize(("family", "other"), [("klein", MISTRAL3), ("dev", QWEN3)])
def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, family: str, other: Language) -> None:
    with pytest.raises(CheckpointError, match="does not know"):
        load_tokenizer(saved(tmp_path / "tokenizer", family, None), "text", padding_of(other))


def test_a_template_that_takes_no_plain_prompt_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tokenizer", "klein", None)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(CheckpointError, match="the chat template of .* takes no plain prompt"):
        load_tokenizer(folder, "text", padding_of(QWEN3))


@pytest.mark.parametrize("size", [(64, 96), (48, 16), (160, 112)])
def test_a_masks_values_are_torchs_bilinear_ones(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 2, size).astype(np.float32)
    grid = size[0] // 16, size[1] // 16
    theirs = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], grid, mode="bilinear")
    found = coarse(mask, 16, FLUX2_NOISE, Inpaint(mask="bilinear", source=True))
    assert found.shape == (grid[0] * grid[1], 128)
    np.testing.assert_array_equal(found, np.repeat(theirs.numpy().reshape(-1, 1), 128, axis=1))
