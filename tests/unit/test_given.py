"""What becomes of pictures, masks and numbers that are given: kept, said, or refused in one line."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from given import bar, box, pattern
from PIL import Image, ImageDraw

from flux_trt.runtime import Pipeline
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.cli import main
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import picture
from flux_trt.runtime.tasks import sizes
from flux_trt.runtime.tasks.apart import apart
from flux_trt.runtime.tasks.request import Request


@pytest.fixture(scope="module")
def contract(bundle):
    return manifest.read(bundle("flux-nano"))


@pytest.fixture(scope="module")
def nano(bundle):
    with Pipeline.load(bundle("flux-nano"), "onnxruntime") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def fill(bundle):
    with Pipeline.load(bundle("fill-like"), "onnxruntime") as pipeline:
        yield pipeline


# Sizes


@pytest.mark.parametrize(
    "margins", [(10, 0, 0, 0), (0, 3, 0, 0), (5, 0, 7, 1), (16, 0, 0, 16), (0, 0, 0, 40)]
)
@pytest.mark.parametrize("size", [(64, 64), (75, 70), (33, 41)])
@pytest.mark.parametrize("which", ["nano", "fill"])
def test_outpainting_keeps_every_pixel(request, margins, size, which):
    pipeline, given = request.getfixturevalue(which), pattern(size)
    asked = {"image": given, "outpaint": margins, "steps": 1, "strength": 1.0}
    left, top, right, bottom = margins
    (plain,) = pipeline.generate("a", **asked)
    (pasted,) = pipeline.generate("a", paste=True, **asked)
    assert plain.size == pasted.size == (size[0] + left + right, size[1] + top + bottom)
    kept = np.asarray(pasted)[top : top + size[1], left : left + size[0]]
    np.testing.assert_array_equal(kept, np.asarray(given))
    new = np.ones(pasted.size[::-1], bool)
    new[top : top + size[1], left : left + size[0]] = False
    np.testing.assert_array_equal(np.asarray(pasted)[new], np.asarray(plain)[new])


@pytest.mark.parametrize("size", [(75, 70), (64, 64), (17, 90)])
@pytest.mark.parametrize("asked", [None, (64, 48)])
def test_pasting_gives_back_the_pictures_own_pixels_and_size(nano, size, asked):
    given, mask = pattern(size), box(size, 0, 0, 8, 30)
    (pasted,) = nano.generate("a", image=given, mask=mask, paste=True, steps=2, size=asked)
    assert pasted.size == size
    kept = np.asarray(mask) == 0
    np.testing.assert_array_equal(np.asarray(pasted)[kept], np.asarray(given)[kept])
    assert (np.asarray(pasted)[~kept] != np.asarray(given)[~kept]).any()


def test_a_soft_edge_mixes_both(nano):
    given, mask = pattern((64, 64)), box((64, 64), 16, 16, 47, 47)
    asked = {"image": given, "mask": mask, "steps": 1}
    (soft,) = nano.generate("a", mask_blur=3, paste=True, **asked)
    (hard,) = nano.generate("a", mask_blur=0, paste=True, **asked)
    kept = np.asarray(picture.grey(mask)) == 0
    np.testing.assert_array_equal(np.asarray(hard)[kept], np.asarray(given)[kept])
    assert (np.asarray(soft)[kept] != np.asarray(given)[kept]).any()
    np.testing.assert_array_equal(np.asarray(soft)[:4], np.asarray(given)[:4])


def test_an_odd_picture_is_resized_with_a_line(contract, caplog):
    found = Request.of(contract, "a", image=pattern((75, 70)))
    assert (found.width, found.height) == (64, 64)
    (said,) = caplog.messages
    assert "75x70 pixels is resized to 64x64, which stretches it by 7.1 %; crop it to 64x64" in said
    caplog.clear()
    Request.of(contract, "a", image=pattern((64, 80)))
    Request.of(contract, "a", image=pattern((128, 64)), size=(64, 32))
    assert caplog.messages == []
    Request.of(contract, "a", image=pattern((128, 64)), size=(64, 64))
    assert "resized to 64x64, which stretches it by 100.0 %; crop it to 64x64" in caplog.messages[0]


def test_references_say_how_much_they_are_stretched(contract, caplog):
    Request.of(contract, "a", reference=pattern((192, 108)))
    (said,) = caplog.messages
    assert said.startswith("the reference picture of 192x108 pixels is resized to ")
    assert "--no-auto-resize keeps its shape" in said
    caplog.clear()
    Request.of(contract, "a", reference=pattern((128, 128)))
    assert caplog.messages == []


def test_controls_and_masks_of_another_shape_are_said(bundle, contract, caplog):
    canny = manifest.read(bundle("canny-like"))
    caplog.clear()  # of the build
    Request.of(canny, "a", image=pattern((64, 64)), control=pattern((64, 32)))
    Request.of(contract, "a", image=pattern((64, 64)), mask=box((64, 32), 0, 0, 40, 20))
    assert [line.split(" of ")[0] for line in caplog.messages] == ["the control picture", "the mask"]


def test_a_photo_is_said_and_refused_without_a_size(contract, caplog):
    photo = Image.new("RGB", (4032, 3024))
    with pytest.raises(RequestError, match=r"4032x3024 pixels \(12.2 megapixels, 47,628 tokens: up to .* GB"):
        Request.of(contract, "a", image=photo)
    with pytest.raises(RequestError, match="need a --size, such as"):
        Request.of(contract, "a", image=Image.new("RGB", (5000, 64)))
    assert Request.of(contract, "a", image=photo, size=(64, 48)).width == 64
    assert caplog.messages == []
    Request.of(contract, "a", image=photo, size=(4032, 3024))
    assert "47,628 tokens" in caplog.messages[0]
    with pytest.raises(
        RequestError, match="the reference picture has 4032x3024 .*leave --no-auto-resize out"
    ):
        Request.of(contract, "a", reference=photo, auto_resize=False)


def test_the_memory_that_is_said_is_what_onnxruntime_asks_for(contract):
    """flux-nano, 47,628 tokens: its allocator was seen to fail at 27,257,707,264 bytes."""
    assert "up to 27.3 GB" in sizes.said((4032, 3024), contract)


def test_a_small_picture_is_called_one(contract):
    with pytest.raises(RequestError, match="the picture has 10x10 pixels and each side needs at least 16"):
        Request.of(contract, "a", image=pattern((10, 10)))


def test_pictures_of_several_sizes_are_painted_at_their_own(nano):
    given = [pattern((64, 64), 1), pattern((96, 48), 2), pattern((64, 64), 3)]
    prompts = ["a red circle", "a blue square", "a green cross"]
    asked = {"steps": 2, "guidance": 1.0}
    found = nano.generate(prompts, image=given, seed=5, count=2, batch=4, **asked)
    assert [each.size for each in found] == [each.size for each in given for _ in range(2)]
    for index, one in enumerate(found):
        k = index // 2
        (alone,) = nano.generate(prompts[k], image=given[k], seed=5 + index, **asked)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(alone))
    same = nano.generate(prompts, image=given, size=(48, 48), **asked)
    assert {each.size for each in same} == {(48, 48)}
    edits = nano.edit(given[:2], source="a", target=prompts[:2], steps=2)
    assert [each.size for each in edits] == [(64, 64), (96, 48)]
    with pytest.raises(RequestError, match="image are of 2 sizes, as 64x64 and 96x48; give a size"):
        Request.of(nano.bundle.manifest, prompts, image=given)


def test_one_wrong_part_is_refused_before_any_is_painted(contract):
    def ask(**asked):
        return Request.of(contract, **asked)

    with pytest.raises(RequestError, match="10x10"):
        apart(ask, "prompt", ["a", "b"], {"image": [pattern((64, 64)), pattern((10, 10))]})


# Masks


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (Image.new("L", (64, 64), 0), "its brightest value is 0 of 255"),
        (Image.new("L", (64, 64), 127), "its brightest value is 127 of 255"),
        (box((64, 64), 17, 17, 23, 23), "finer than these 8 pixels and miss them all"),
        (bar((64, 64), 4), "finer than these 8 pixels"),
        (np.eye(64, dtype=np.uint8), "must be multiplied by 255"),
        (box((1024, 1024), 500, 500, 501, 501), "no pixel of it is half white"),
        (Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "its brightest value is 0"),
    ],
)
def test_a_mask_that_would_paint_nothing_is_refused(contract, bundle, mask, why):
    with pytest.raises(RequestError, match=f"the mask would paint nothing: .*{why}"):
        Request.of(contract, "a", image=pattern((64, 64)), mask=mask)
    if "8 pixels" in why:
        Request.of(manifest.read(bundle("fill-like")), "a", image=pattern((64, 64)), mask=mask)
        canny = manifest.read(bundle("canny-like"))
        with pytest.raises(RequestError, match=why):
            Request.of(canny, "a", image=pattern((64, 64)), control=pattern((64, 64)), mask=mask)


def test_each_mask_is_looked_at(contract):
    masks = [box((64, 64), 0, 0, 20, 20), bar((64, 64), 4)]
    with pytest.raises(RequestError, match="the mask of picture 2 would paint nothing"):
        Request.of(contract, ["a", "b"], image=pattern((64, 64)), mask=masks)


def test_white_and_grey_masks_are_said(contract, caplog):
    Request.of(contract, "a", image=pattern((64, 64)), mask=Image.new("L", (64, 64), 255))
    Request.of(contract, "a", image=pattern((64, 64)), mask=Image.linear_gradient("L").resize((64, 64)))
    assert "white everywhere" in caplog.messages[0]
    assert "of the mask is grey; it paints where it is 128 or more" in caplog.messages[1]


def strokes(colour, mode="RGBA", background=(0, 0, 0, 0)):
    made = Image.new("RGBA", (64, 64), background)
    ImageDraw.Draw(made).rectangle((16, 16, 40, 40), fill=colour)
    return made.convert(mode)


def with_a_hole():
    made = pattern((64, 64)).convert("RGBA")
    made.paste((0, 0, 0, 0), (16, 16, 41, 41))
    return made


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (strokes("white"), "one colour"),
        (strokes("black"), "one colour"),
        (strokes("red"), "one colour"),
        (strokes("white", "LA"), "one colour"),
        (strokes("black", "LA", (255, 255, 255, 0)), "one colour"),
        (with_a_hole(), "transparent parts: these are painted"),
        (strokes("white", background="black"), None),
        (strokes("white", "RGB"), None),
    ],
)
def test_transparency_is_read_by_one_convention(mask, said, tmp_path, caplog):
    expected = np.asarray(box((64, 64), 16, 16, 40, 40))
    mask.save(tmp_path / "mask.png")
    for found in (picture.read_mask(tmp_path / "mask.png"), picture.read_mask(mask)):
        np.testing.assert_array_equal(np.asarray(found), expected)
    assert len(caplog.messages) == (2 if said else 0)
    assert all(said in line for line in caplog.messages)


def test_black_and_white_strokes_on_transparent(caplog):
    mask = strokes("white")
    ImageDraw.Draw(mask).rectangle((48, 0, 60, 60), fill="black")
    np.testing.assert_array_equal(np.asarray(picture.grey(mask)), np.asarray(box((64, 64), 16, 16, 40, 40)))
    assert "black and white" in caplog.messages[0]


# Guidance, commands, jobs


def test_true_guidance_of_one_is_none(nano, caplog):
    asked = {"size": (32, 32), "steps": 2}
    (plain,) = nano.generate("a", **asked)
    for scale in (1.0, 0.5, 0):
        (found,) = nano.generate("a", negative="b", true_cfg=scale, **asked)
        assert found.tobytes() == plain.tobytes()
    assert sum("negative prompt is ignored" in line for line in caplog.messages) == 3


def test_commands_and_jobs_take_the_same(bundle, tmp_path):
    pattern((75, 70)).save(tmp_path / "a.png")
    box((75, 70), 10, 10, 40, 40).save(tmp_path / "m.png")
    out = tmp_path / "o.png"
    options = [
        "--image",
        tmp_path / "a.png",
        "--mask",
        tmp_path / "m.png",
        "--mask-blur",
        2,
        "--mask-crop",
        6,
    ]
    arguments = ["generate", bundle("flux-nano"), "a", *options, "--size", "64x64", "--steps", 2, "-o", out]
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    job = {"prompt": "a", "image": "a.png", "mask": "m.png", "mask_blur": 2, "mask_crop": 6}
    lines = [job | {"size": "64x64", "steps": 2, "output": "j.png"}]
    lines.append(
        {
            "prompt": "a",
            "image": "a.png",
            "outpaint": "10,0,0,0",
            "paste": True,
            "steps": 1,
            "output": "p.png",
        }
    )
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = CliRunner().invoke(
        main, ["generate", str(bundle("flux-nano")), "--jobs", str(tmp_path / "jobs.jsonl")]
    )
    assert result.exit_code == 0, result.output
    with Image.open(out) as one, Image.open(tmp_path / "j.png") as other:
        assert one.size == (75, 70)
        assert one.tobytes() == other.tobytes()
    with Image.open(tmp_path / "p.png") as wide:
        assert wide.size == (85, 70)
    zero = [*arguments[:3], "--image", tmp_path / "a.png", "--outpaint", "0,0,0,0", "-o", out]
    assert "adds nothing" in CliRunner().invoke(main, [str(each) for each in zero]).output
