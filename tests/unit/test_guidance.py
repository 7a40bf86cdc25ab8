"""Guidance of the three kinds; the pictures are those of the same run asked for in another way."""

import json
import math
import shutil

import numpy as np
import pytest
from pydantic import ValidationError

from flux_trt.runtime import Pipeline
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.rules import Guidance
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks.guidance import Guided, guided


@pytest.fixture
def of_kind(tiny):
    def get(**rule):
        found = {"default": None, "negative": None} | rule
        return manifest.read(tiny).model_copy(update={"guidance": Guidance(**found)})

    return get


@pytest.fixture
def true(of_kind):
    return of_kind(kind="true", default=3.5, negative="")


def test_a_model_that_is_told(of_kind):
    told = of_kind(kind="embedded", default=3.5)
    assert guided(told, 2) == Guided(3.5)
    assert guided(told, 2, guidance=0.0) == Guided(0.0)
    assert guided(told, 2, 1.0, "blurry", 4.0) == Guided(1.0, 4.0, ("blurry", "blurry"))


def test_a_model_that_is_not(of_kind):
    none = of_kind(kind="none")
    assert guided(none, 1) == Guided(None)
    assert guided(none, 1, None, ["blurry"], 4.0) == Guided(None, 4.0, ("blurry",))
    with pytest.raises(RequestError, match="has no guidance; leave guidance out"):
        guided(none, 1, guidance=2.0)


def test_a_model_that_always_takes_a_negative_prompt(true):
    assert guided(true, 2) == Guided(None, 3.5, ("", ""))
    assert guided(true, 1, guidance=2.0) == Guided(None, 2.0, ("",))
    assert guided(true, 1, negative="blurry") == Guided(None, 3.5, ("blurry",))
    assert guided(true, 2, None, ["a", "b"], 5.0) == Guided(None, 5.0, ("a", "b"))
    assert guided(true, 1, true_cfg=2.0) == Guided(None, 2.0, ("",))


def test_at_a_scale_of_one_the_second_run_is_left_out(true):
    assert guided(true, 1, guidance=1.0) == Guided(None)
    assert guided(true, 1, guidance=0.0) == Guided(None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"guidance": 2.0, "true_cfg": 3.0}, "both say the scale"),
        ({"guidance": math.nan}, "not a finite number"),
        ({"negative": ["a", "b"]}, "2 negative prompts are given for 3 prompts"),
    ],
)
def test_what_does_not_go_together(true, asked, message):
    with pytest.raises(RequestError, match=message):
        guided(true, 3, **asked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "embedded", "default": None, "negative": None},
        {"kind": "true", "default": 4.0, "negative": None},
        {"kind": "none", "default": 4.0, "negative": None},
        {"kind": "embedded", "default": 4.0, "negative": ""},
    ],
)
def test_each_kind_has_its_numbers(wrong):
    with pytest.raises(ValidationError, match="the numbers of guidance"):
        Guidance(**wrong)


def test_pictures_of_true_guidance(bundle, tmp_path):
    """What a bundle does by itself is what is asked of one without guidance."""
    root = shutil.copytree(bundle("schnell-like"), tmp_path / "bundle")
    fields = json.loads((root / manifest.NAME).read_text())
    fields["guidance"] = {"kind": "true", "default": 2.5, "negative": "green"}
    (root / manifest.NAME).write_text(json.dumps(fields))
    asked = {"prompt": ["a red circle", "a blue square"], "size": (32, 48), "steps": 2, "batch": 2}
    with Pipeline.load(root, "onnxruntime", "cpu") as true:
        found, plain = true.generate(**asked), true.generate(**asked, guidance=1)
    with Pipeline.load(bundle("schnell-like"), "onnxruntime", "cpu") as none:
        expected, unguided = none.generate(**asked, negative="green", true_cfg=2.5), none.generate(**asked)
    for mine, theirs in ((found, expected), (plain, unguided)):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert not np.array_equal(np.asarray(found[0]), np.asarray(plain[0]))
