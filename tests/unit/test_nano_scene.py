"""flux-nano: captions, edits and drawing."""

from __future__ import annotations

import numpy as np
import pytest

from nano.edit import sample_edit
from nano.edit import test_edits as held_out_edits
from nano.picture import SIDE, Jitter, draw
from nano.scene import Object, Scene, blur, parse, sample_scene, sample_split
from nano.scene import test_prompts as held_out_prompts


def test_captions_parse_back_to_their_scene() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = sample_scene(rng)
        assert parse(scene.caption) == scene
        assert parse(blur(scene, rng).caption).caption in scene.caption or blur(scene, rng).objects


def test_captions_are_forgiving_about_case_and_spaces() -> None:
    scene = Scene((Object("orange", "cross", "at the left"),), "black")
    assert parse("  An ORANGE cross at the left  on a black background. ") == scene


@pytest.mark.parametrize(
    "caption", ["", "a cat", "a red circle at the moon", "a red circle and a cat", "red"]
)
def test_other_captions_are_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        parse(caption)


def test_splits_do_not_overlap() -> None:
    rng = np.random.default_rng(1)
    prompts = held_out_prompts(64)
    assert len(set(prompts)) == 64
    assert all(parse(prompt).held_out for prompt in prompts)
    assert not any(sample_split(rng, held_out=False).held_out for _ in range(100))
    for edit in held_out_edits(32):
        assert edit.source.held_out and edit.target.held_out and edit.target.valid


def test_edits_change_one_attribute_and_can_be_undone() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        edit = sample_edit(rng)
        before = [
            edit.source.background,
            *(value for thing in edit.source.objects for value in vars(thing).values()),
        ]
        after = [
            edit.target.background,
            *(value for thing in edit.target.objects for value in vars(thing).values()),
        ]
        assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
        assert edit.reverse.target == edit.source


def test_instructions() -> None:
    rng = np.random.default_rng(3)
    texts = dict.fromkeys(("colour", "shape", "background"), "")
    for _ in range(30):
        edit = sample_edit(rng)
        texts[edit.kind] = edit.instruction
    assert texts["colour"].startswith("make the ")
    assert texts["shape"].startswith("turn the ") and " into a " in texts["shape"]
    assert texts["background"].startswith("make the background ")


def test_drawing_is_repeatable_and_shows_the_palette() -> None:
    scene = Scene((Object("red", "square", "in the center"),), "white")
    picture = draw(scene)
    assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8
    assert tuple(picture[SIDE // 2, SIDE // 2]) == (215, 35, 40)
    assert tuple(picture[0, 0]) == (248, 248, 248)
    jitter = Jitter.sample(np.random.default_rng(4))
    assert np.array_equal(draw(scene, jitter), draw(scene, jitter))
    assert not np.array_equal(draw(scene, jitter), picture)


def test_what_is_left_open_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="no place"):
        draw(parse("a red circle on a white background"))
    with pytest.raises(ValueError, match="without a background"):
        draw(parse("a red circle at the top"))
