"""What a picture says of itself: everything that was asked for, and what is the same of two pictures."""

import json

import numpy as np
import pytest
from given import EARLIER
from PIL import Image

from flux_trt.runtime import painted
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.pictures.vae import Tiling
from flux_trt.runtime.tasks.arguments import EditArguments, GenerateArguments
from flux_trt.runtime.tasks.company import alike, joined
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.tasks.sources import Source, digest

SIZE = (48, 32)


def noise(seed, mode="RGB", size=SIZE):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values).convert(mode)


A, B = noise(1), noise(2)
MASK, OTHER = noise(3, "L"), noise(4, "L")
IMAGE = {"image": A}
HOLE = {"image": A, "mask": MASK}
GENERATE = {
    "size": ("dev-like", {}, (32, 48), (48, 32)),
    "seed": ("dev-like", {}, 3, 4),
    "steps": ("dev-like", {}, 3, 4),
    "guidance": ("dev-like", {}, 1.0, 2.0),
    "negative": ("dev-like", {"true_cfg": 2.0}, "", "b"),
    "true_cfg": ("dev-like", {"negative": "b"}, 2.0, 3.0),
    "image": ("dev-like", {}, A, B),
    "prompt_2": ("dev-like", {}, "b", "c"),
    "negative_2": ("dev-like", {"negative": "b", "true_cfg": 2.0}, "b", "c"),
    "shift": ("dev-like", {}, 2.0, 3.0),
    "sigmas": ("dev-like", {}, [1.0, 0.5], [1.0, 0.25]),
    "solver": ("dev-like", {}, "euler", "ab2"),
    "strength": ("dev-like", IMAGE, 0.5, 1.0),
    "outpaint": ("dev-like", IMAGE, (16, 0, 0, 0), (0, 0, 16, 0)),
    "mask_blur": ("dev-like", HOLE, 1.0, 2.0),
    "mask_crop": ("dev-like", HOLE, 1, 2),
    "mask": ("dev-like", IMAGE, MASK, OTHER),
    "paste": ("dev-like", HOLE, True, False),
    "control": ("canny-like", {}, A, B),
    "canny": ("canny-like", {}, A, B),
    "reference": ("kontext-like", {}, [A], [B]),
    "auto_resize": ("kontext-like", {"reference": [A]}, True, False),
}
"""Argument -> a bundle, what else it needs, and two values."""
EDIT = {
    "size": ({}, (32, 48), (48, 32)),
    "seed": ({}, 3, 4),
    "steps": ({"n_max": 2}, 3, 4),
    "shift": ({}, 2.0, 3.0),
    "sigmas": ({}, [1.0, 0.5], [1.0, 0.25]),
    "n_max": ({"steps": 4}, 3, 4),
    "n_min": ({"steps": 4}, 0, 1),
    "n_avg": ({}, 1, 2),
    "source_guidance": ({}, 1.0, 2.0),
    "target_guidance": ({}, 1.0, 2.0),
}
NOT_OF_A_PICTURE = {"count", "batch"}
"""How many pictures there are, and how many are painted at once: each has its seed, and comes out the
same."""
ELSEWHERE = {"lora", "boxes"}
"""They take a bundle with branches, and a FLUX.3: test_lora_asked, test_boxes."""
NOT_OF_AN_EDIT = {"solver"}
"""It has one choice: test_solver."""


@pytest.fixture(scope="module")
def opened(bundle):
    return lambda name: Bundle.open(bundle(name), check=False)


def told(bundle, request, index=0, tile=None):
    tiling = Tiling.of(bundle.manifest.model, tile)
    found = painted.parameters(bundle, request, index, tiling)
    assert json.loads(json.dumps(found)) == found, "as JSON has it"
    return found


def test_no_argument_is_forgotten():
    others = NOT_OF_A_PICTURE | ELSEWHERE
    assert set(GENERATE) == set(GenerateArguments.__annotations__) - others
    assert set(EDIT) == set(EditArguments.__annotations__) - others - NOT_OF_AN_EDIT


@pytest.mark.parametrize("name", GENERATE)
def test_another_value_is_another_record(opened, name):
    bundle, more, one, other = opened(GENERATE[name][0]), *GENERATE[name][1:]
    records = [
        told(bundle, Request.of(bundle.manifest, "a", **more, **{name: value})) for value in (one, other, one)
    ]
    assert records[0] == records[2] != records[1]
    assert painted.same(records[0], records[2]) == []
    assert painted.same(records[0], records[1]) != []


@pytest.mark.parametrize("name", EDIT)
def test_another_value_is_another_record_of_an_edit(opened, name):
    bundle, (more, one, other) = opened("dev-like"), EDIT[name]
    one, other = (
        told(bundle, Request.of_edit(bundle.manifest, A, "a", "b", **more, **{name: value}))
        for value in (one, other)
    )
    assert one != other and painted.same(one, other) != []


@pytest.mark.parametrize(("image", "source", "target"), [(B, "a", "b"), (A, "x", "b"), (A, "a", "x")])
def test_pictures_and_texts_of_an_edit_are_recorded(opened, image, source, target):
    bundle = opened("dev-like")
    first = told(bundle, Request.of_edit(bundle.manifest, A, "a", "b"))
    assert painted.same(first, told(bundle, Request.of_edit(bundle.manifest, image, source, target)))


def test_what_stands_for_pictures_is_recorded(opened, tmp_path):
    A.save(tmp_path / "a.png")
    B.save(tmp_path / "b.png")
    canny, fill = opened("canny-like"), opened("fill-like")
    records = [
        told(fill, Request.of(fill.manifest, "a", image=tmp_path / name, outpaint=margins))
        for name, margins in (("a.png", (16, 0, 0, 0)), ("a.png", (0, 16, 0, 0)), ("b.png", (16, 0, 0, 0)))
    ]
    assert len({json.dumps(each) for each in records}) == 3
    assert records[0]["image"] == {"sha256": digest(A), "path": str(tmp_path / "a.png")}
    assert (records[0]["outpaint"], "mask" in records[0]) == ([16, 0, 0, 0], False)
    edges, whole = (
        told(canny, Request.of(canny.manifest, "a", **{name: tmp_path / "a.png"}))
        for name in ("canny", "control")
    )
    assert edges["control"] == whole["control"]
    assert (edges["canny"], whole["canny"]) == (True, False)


def test_each_picture_has_its_own_record(opened):
    bundle = opened("dev-like")
    request = Request.of(bundle.manifest, ["a", "b"], image=[A, B], mask=MASK, count=2, seed=7)
    records = [told(bundle, request, index) for index in range(4)]
    assert [each["image"]["sha256"] for each in records] == [digest(A), digest(A), digest(B), digest(B)]
    assert {each["mask"]["sha256"] for each in records} == {digest(MASK)}
    assert [(each["prompt"], each["seed"]) for each in records] == [("a", 7), ("a", 8), ("b", 9), ("b", 10)]


def test_tiles_are_recorded_where_they_are_used(opened):
    bundle = opened("dev-like")
    request = Request.of(bundle.manifest, "a", size=(96, 96))
    assert [told(bundle, request, tile=tile)["tile"] for tile in (None, 0, 64, 96)] == [None, None, 64, None]


def test_a_digest_is_of_pixels_mode_and_size():
    flat = Image.new("RGB", (4, 6))
    others = [Image.new("RGB", (6, 4)), Image.new("RGB", (4, 6), (0, 0, 1)), Image.new("L", (4, 18))]
    assert len({digest(each) for each in (flat, *others)}) == 4
    assert digest(flat) == digest(flat.copy())


def test_what_stands_for_itself_is_not_compared(opened):
    bundle = opened("dev-like")
    first = told(bundle, Request.of(bundle.manifest, "a", image=A)) | {"device": "cpu", "backend": "x"}
    moved = {
        **first,
        "bundle": "built again",
        "backend": "y",
        "flux_trt": "9",
        "image": {"sha256": digest(A), "path": "elsewhere.png"},
    }
    assert painted.same(first, moved) == []
    assert painted.same(first, first | {"content": "another"}) == ["content"]


def test_a_bundle_built_again_has_the_same_content(opened):
    bundle = opened("dev-like")
    manifest = bundle.manifest
    later = manifest.model_copy(
        update={"provenance": manifest.provenance.model_copy(update={"created": "2030-01-01T00:00:00Z"})}
    )
    assert Bundle(bundle.root, later, "x").content == bundle.content
    other = manifest.model_copy(update={"variant": "other"})
    assert Bundle(bundle.root, other, "x").content != bundle.content


def test_a_record_of_an_earlier_version_is_trusted_where_it_says_all(opened):
    bundle = opened("dev-like")
    asked = told(bundle, Request.of(bundle.manifest, "a"))
    old = {name: asked[name] for name in EARLIER}
    assert painted.same(old, asked) == []
    assert painted.same(old | {"seed": 9}, asked) == ["seed"]
    assert painted.same(old | {"bundle": "x"}, asked) == ["bundle"]
    given = told(bundle, Request.of(bundle.manifest, "a", image=A))
    assert painted.same({**old, "task": "image", "strength": 0.6}, given) == ["version"]


@pytest.mark.parametrize("name", GENERATE)
def test_only_a_pictures_own_may_differ_in_company(opened, name):
    """Joined, each picture has the record that it has alone; else they are not alike."""
    bundle, more, one, other = opened(GENERATE[name][0]), *GENERATE[name][1:]
    requests = [Request.of(bundle.manifest, "a", **more, **{name: value}) for value in (one, other)]
    own = {"seed", "prompt_2", "negative", "negative_2", "image", "mask", "control", "canny"}
    assert alike(*requests) == (name in own)
    assert alike(requests[0], requests[0])
    pair = requests if name in own else [requests[0]] * 2
    both = joined(pair)
    assert [told(bundle, both, index) for index in range(2)] == [told(bundle, each) for each in pair]
    assert (len(both), both.batch) == (2, 2)


def test_edits_in_company(opened):
    bundle = opened("dev-like")
    pair = [
        Request.of_edit(bundle.manifest, image, source, target, seed=seed)
        for image, source, target, seed in ((A, "a", "b", 1), (B, "c", "d", 2))
    ]
    assert alike(*pair)
    assert [told(bundle, joined(pair), index) for index in range(2)] == [told(bundle, each) for each in pair]
    assert not alike(pair[0], Request.of_edit(bundle.manifest, A, "a", "b", n_min=1))
    assert not alike(pair[0], Request.of(bundle.manifest, "a", image=A))
    assert Source("x").record == {"sha256": "x"}
