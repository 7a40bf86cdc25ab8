"""flux-nano's training: a phase resumes and keeps its average; tokenizers know every word of the world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flux_trt.runtime.tasks import fill

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from nano.beside import VARIANTS  # noqa: E402
from nano.bundle import new_transformer, new_vae  # noqa: E402
from nano.dit import predict  # noqa: E402
from nano.edit import sample_edit  # noqa: E402
from nano.latents import Latents  # noqa: E402
from nano.phase import Phase  # noqa: E402
from nano.plot import join_journals, read_losses  # noqa: E402
from nano.variants import widen  # noqa: E402
from nano.vocabulary import clip_tokenizer, t5_tokenizer, words  # noqa: E402


def run(folder: Path, minutes: float, limit: int) -> Phase:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    phase = Phase(folder, "line", model, minutes, rate=1e-2)
    for step in phase:
        phase.update(model(torch.ones(2, 4)).square().mean())
        if step == limit:
            phase.save()
            break
    return phase


def test_a_phase_resumes_where_it_stopped(tmp_path: Path) -> None:
    first = run(tmp_path, minutes=10, limit=120)
    again = run(tmp_path, minutes=10, limit=121)
    assert again.step == 121
    assert again.seconds >= first.seconds > 0
    assert read_losses(tmp_path / "journal.jsonl")["line"][-1][0] == 99


def test_a_phase_ends_with_its_time_and_then_costs_nothing(tmp_path: Path) -> None:
    first = run(tmp_path, minutes=0.002, limit=10**9)
    assert first.done and first.progress == 1.0
    again = run(tmp_path, minutes=0.002, limit=10**9)
    assert again.step == first.step
    again.use_average()
    assert torch.equal(again.weights[0], again.average[0])


def test_words_of_prompts_are_whole_to_t5_and_short_to_clip() -> None:
    rng = np.random.default_rng(0)
    edits = [sample_edit(rng) for _ in range(200)]
    used = {
        word for edit in edits for text in (edit.source.caption, edit.instruction) for word in text.split()
    }
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    assert used <= set(words())
    assert all(len(t5.tokenize(word)) == 1 for word in used)
    # Merges of one word get in the way of another; the shipped weights know these four by their pieces.
    split = {word for word in used if len(clip.tokenize(word)) > 1}
    assert split == {"cyan", "orange", "pink", "triangle"}


def test_unknown_words_are_spelled() -> None:
    assert (
        clip_tokenizer().decode(clip_tokenizer()("zebra ü").input_ids, skip_special_tokens=True) == "zebra ü"
    )
    assert t5_tokenizer().decode(t5_tokenizer()("zebra").input_ids, skip_special_tokens=True) == "zebra"


def test_a_journal_goes_on_where_the_checkpoint_stopped(tmp_path: Path) -> None:
    line = '{{"phase": "{}", "step": {}, "seconds": 1.0, "loss": 0.5}}\n'
    (tmp_path / "old").write_text(line.format("vae", 49) + line.format("dit", 49))
    (tmp_path / "new").write_text(line.format("dit", 49) + line.format("dit", 99) + line.format("sight", 49))
    join_journals(tmp_path / "old", tmp_path / "new", tmp_path / "out")
    found = read_losses(tmp_path / "out")
    assert {phase: len(points) for phase, points in found.items()} == {
        "vae": 1,
        "dit": 1,
        "dit+": 2,
        "sight": 1,
    }
    join_journals(tmp_path / "out", tmp_path / "new", tmp_path / "out")
    assert "dit++" in read_losses(tmp_path / "out")


def test_batches_have_the_share_of_two_objects_that_was_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    edits = [sample_edit(rng) for _ in range(300)]
    texts = [[e.source.caption, e.target.caption, e.instruction, e.reverse.instruction] for e in edits]
    tokens = torch.arange(600.0).reshape(300, 2, 1, 1).expand(-1, -1, 16, 64).half()
    stored = {"latents": tokens, "texts": texts, "vague": [row[:2] for row in texts]}
    torch.save(stored, tmp_path / "latents.pt")
    for share in (0.0, 0.8, 1.0):
        data = Latents(tmp_path / "latents.pt", None, torch.device("cpu"), two_share=share)
        captions = data.captioned(rng, 2000, dropout=0.0)
        assert np.mean([" and " in text for text in captions.texts]) == pytest.approx(share, abs=0.05)
        changes = data.edits(rng, 2000, dropout=0.0)
        assert changes.reference is not None
        ours, theirs = changes.latents[:, 0, 0].int(), changes.reference[:, 0, 0].int()
        assert torch.equal(ours ^ 1, theirs)
        crowded = [len(edits[int(row) // 2].source.objects) == 2 for row in ours]
        assert np.mean(crowded) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_wider_transformer_starts_where_the_narrow_one_stopped(name: str) -> None:
    torch.manual_seed(0)
    model, channels = new_transformer(), VARIANTS[name].channels
    torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    asked = torch.full((2,), 0.5), torch.ones(2), torch.randn(2, 64), torch.randn(2, 20, 128)
    noisy, beside = torch.randn(2, 16, 64), torch.randn(2, 16, channels - 64)
    with torch.no_grad():
        expected = predict(model, noisy, *asked)
        found = predict(widen(model, channels), torch.cat([noisy, beside], 2), *asked)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_sees_what_its_channels_say(name: str) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    seen = VARIANTS[name].beside(rng, pictures, new_vae().eval(), torch.device("cpu"))
    assert seen.shape == (6, 16, VARIANTS[name].channels - 64)
    if name == "fill":
        holes = [unpack_mask(tokens[:, 64:].numpy()) for tokens in seen]
        assert all(set(np.unique(hole)) <= {0, 1} and hole.any() for hole in holes)
        for hole, tokens in zip(holes, seen, strict=True):
            np.testing.assert_array_equal(fill.fine(hole, 16), tokens[:, 64:].numpy())


def unpack_mask(tokens: np.ndarray) -> np.ndarray:
    """[16, 256] to [64, 64]: tokens are 4 x 4 patches of 2 x 2 cells of 8 x 8 pixels."""
    y, x, row, column, cell_y, cell_x = 0, 1, 2, 3, 4, 5
    patches = tokens.reshape(4, 4, 8, 8, 2, 2)
    return patches.transpose(y, cell_y, row, x, cell_x, column).reshape(64, 64)
