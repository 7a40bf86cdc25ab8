"""flux-nano's checker: true pictures pass, and each corruption fails on exactly its criterion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nano.checker import Rates, Report, check
from nano.edit import sample_edit
from nano.picture import Jitter, draw
from nano.scene import PLACES, Object, Scene, parse, sample_scene

ASKED = parse("a red circle at the top left and a blue square in the center on a white background")


def wrong(report: Report) -> set[str]:
    """The criteria that some object, or the background, fails."""
    criteria = {
        name
        for name in ("colour", "shape", "place")
        for verdict in report.objects
        if not getattr(verdict, name)
    }
    return criteria | (set() if report.background else {"background"})


def painted(**changes: str) -> Scene:
    """`ASKED` with its first object changed."""
    first, second = ASKED.objects
    return Scene((replace(first, **changes), second), ASKED.background)


def test_true_pictures_pass() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(150)]
    rates = Rates.of(check(draw(scene, Jitter.sample(rng)), scene) for scene in scenes)
    assert min(rates.colour, rates.shape, rates.place, rates.background) == 1.0
    assert rates.all_right >= 0.99
    assert rates.pictures == 150 and rates.objects == sum(len(scene.objects) for scene in scenes)


@pytest.mark.parametrize(
    ("scene", "criterion"),
    [
        (painted(colour="pink"), "colour"),
        (painted(colour="orange"), "colour"),
        (painted(shape="diamond"), "shape"),
        (painted(shape="square"), "shape"),
        (painted(place="at the top"), "place"),
        (painted(place="at the left"), "place"),
        (replace(ASKED, background="gray"), "background"),
        (replace(ASKED, background="yellow"), "background"),
    ],
)
def test_one_corruption_fails_on_its_criterion_only(scene: Scene, criterion: str) -> None:
    report = check(draw(scene), ASKED)
    assert wrong(report) == {criterion}
    assert not report.all_right


def test_every_kind_of_edit_is_seen() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        edit = sample_edit(rng)
        assert wrong(check(draw(edit.target, Jitter.sample(rng)), edit.source)) == {edit.kind}


def test_missing_and_extra_objects_are_seen() -> None:
    one = Scene(ASKED.objects[:1], ASKED.background)
    missing = check(draw(one), ASKED)
    assert missing.objects[0].marks == 3 and missing.objects[1].marks == 0 and missing.background
    extra = check(draw(ASKED), one)
    assert extra.objects[0].marks == 3 and not extra.all_right


def test_swapped_colours_are_two_mistakes() -> None:
    swapped = parse("a blue circle at the top left and a red square in the center on a white background")
    report = check(draw(swapped), ASKED)
    assert wrong(report) == {"colour"}
    assert not any(verdict.colour for verdict in report.objects)


@pytest.mark.parametrize("picture", [np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 248, np.uint8)])
def test_empty_pictures_have_nothing_right(picture: np.ndarray) -> None:
    assert all(verdict.marks == 0 for verdict in check(picture, ASKED).objects)


def test_noise_is_not_all_right() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not check(noise, ASKED).all_right


def test_prompts_images_and_other_sizes_are_taken() -> None:
    image = Image.fromarray(draw(ASKED, side=128))
    assert check(image, ASKED.caption).all_right
    assert check(image.convert("RGBA"), ASKED).all_right


def test_what_is_left_open_is_not_judged() -> None:
    for place in PLACES:
        scene = Scene((Object("green", "cross", place),), "black")
        assert check(draw(scene), "a green cross").all_right
        assert check(draw(scene), "a green cross on a black background").all_right
