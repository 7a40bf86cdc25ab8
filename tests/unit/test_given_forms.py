"""Arguments of every type, and pictures in every form: files, open ones, arrays, colour profiles."""

import io
import struct

import numpy as np
import pytest
import torch
from given import box, pattern
from PIL import Image, ImageCms

from flux_trt.runtime import Pipeline
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import picture
from flux_trt.runtime.pictures.profile import srgb
from flux_trt.runtime.tasks.request import Request


@pytest.fixture(scope="module")
def contract(bundle):
    return manifest.read(bundle("flux-nano"))


@pytest.fixture(scope="module")
def nano(bundle):
    with Pipeline.load(bundle("flux-nano"), "onnxruntime") as pipeline:
        yield pipeline


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 64}, "size is an int; give .width, height."),
        ({"size": "64x64"}, "size is a str"),
        ({"size": (64, 64, 64)}, "size has 3 parts"),
        ({"size": (64.0, 64)}, "size is a float; give a whole number"),
        ({"steps": 3.0}, "steps is a float"),
        ({"steps": "3"}, "steps is a str"),
        ({"count": True}, "count is a bool"),
        ({"batch": "2"}, "batch is a str"),
        ({"seed": 3.0}, "seed is a float"),
        ({"seed": "3"}, "seed is a str"),
        ({"seed": [1.5]}, "seed is a float"),
        ({"seed": torch.Generator()}, r"torch.*Generator; give its number, generator.initial_seed"),
        ({"guidance": [1.0]}, "guidance is a list; give one number"),
        ({"guidance": "3"}, "guidance is a str"),
        ({"prompt": None}, "prompt is None; give text"),
        ({"prompt": [None]}, "prompt is None"),
        ({"prompt": 3}, "prompt is an int"),
        ({"prompt": b"a"}, "prompt is a bytes"),
        ({"negative": 3, "true_cfg": 2.0}, "negative prompt is an int"),
        ({"true_cfg": "3", "negative": ""}, "true_cfg is a str"),
        ({"strength": "1"}, "strength is a str"),
        ({"paste": "no"}, "paste is a str; give True or False"),
        ({"auto_resize": 1}, "auto_resize is an int"),
        ({"mask_blur": "4"}, "mask_blur is a str"),
        ({"mask_blur": -1}, "give 0 or more"),
        ({"mask_crop": 2.5}, "mask_crop is a float"),
        ({"mask_crop": 2}, "give the mask with --mask"),
        ({"outpaint": 3}, "outpaint is an int"),
        ({"outpaint": (0, 0, 0, 0)}, "adds nothing to paint"),
        ({"outpaint": (1, 0, 0, -1)}, "from 0 on"),
        ({"image": 3}, "image is an int; give a file's name"),
        ({"image": np.zeros((8, 8, 3), np.float32)}, r"image is an array of float32 \[8, 8, 3\]; give bytes"),
        ({"image": np.zeros((2, 8, 8, 3), np.uint8)}, r"array of uint8 \[2, 8, 8, 3\]"),
        ({"image": torch.zeros(3, 8, 8)}, "image is a torch.Tensor; give it as 0..255 in a NumPy array"),
        ({"image": [[0, 1], [2, 3]]}, "image is a list"),
        ({"image": io.BytesIO(b"text")}, "picture given as image: it is nothing that Pillow knows"),
        ({"image": b"text"}, "image is a bytes"),
    ],
)
def test_what_is_of_another_type_is_one_line(contract, wrong, message):
    if "strength" in wrong or wrong.keys() & {"paste"}:
        wrong = {"image": pattern((64, 64)), **wrong}
    if "outpaint" in wrong:
        wrong = {"image": pattern((64, 64)), **wrong}
    with pytest.raises(RequestError, match=message) as fault:
        Request.of(contract, **{"prompt": "a", **wrong})
    assert "\n" not in str(fault.value) and len(str(fault.value)) < 250


def test_edits_are_checked_alike(contract):
    for wrong in (
        {"n_max": 2.0},
        {"n_avg": "1"},
        {"source_guidance": None},
        {"image": None},
        {"target": None},
    ):
        asked = {"image": pattern((64, 64)), "source": "a", "target": "b", **wrong}
        with pytest.raises(RequestError, match=f"{next(iter(wrong))} is|give it with --image"):
            Request.of_edit(contract, **asked)


def test_numpys_numbers_are_numbers(nano):
    asked = {"size": (64, 48), "steps": 2, "seed": [3, 4], "guidance": 1.5, "count": 1, "batch": 2}
    numpys = {
        "size": np.array([64, 48]),
        "steps": np.int64(2),
        "seed": np.array([3, 4]),
        "guidance": np.float32(1.5),
        "count": np.uint8(1),
        "batch": np.int32(2),
    }
    for mine, theirs in zip(
        nano.generate(["a", "b"], **asked), nano.generate(["a", "b"], **numpys), strict=True
    ):
        assert mine.tobytes() == theirs.tobytes()
        assert mine.info == theirs.info
    (one,) = nano.generate("a", seed=np.int64(3), size=(32, 32), steps=1)
    assert any('"seed": 3' in str(text) for text in one.info.values())


def test_pictures_in_every_form_are_one(nano, tmp_path):
    given, mask = pattern((64, 48)), box((64, 48), 8, 8, 40, 40)
    given.save(tmp_path / "a.png")
    alpha = np.dstack([np.asarray(given), np.full((48, 64), 255, np.uint8)])
    forms = [given, str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(given), alpha]
    forms.append(io.BytesIO((tmp_path / "a.png").read_bytes()))
    masks = [mask, np.asarray(mask), np.asarray(mask)[..., None], np.asarray(mask) > 0, mask, mask]
    asked = {"steps": 1, "strength": 0.9}
    found = [nano.generate("a", image=one, mask=m, **asked)[0] for one, m in zip(forms, masks, strict=True)]
    assert len({each.tobytes() for each in found}) == 1


def turned():
    made = Image.new("RGB", (96, 64), "red")
    made.paste("blue", (0, 0, 32, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    made.save(file, "PNG", exif=exif)
    return file


def test_open_pictures_are_turned_as_files_are(contract):
    by_file = Request.of(contract, "a", image=turned()).images[0]
    with Image.open(turned()) as image:
        opened = Request.of(contract, "a", image=image).images[0]
        mask = Request.of(
            contract, "a", image=opened, mask=image.convert("L").point(lambda v: 255 * (v > 40))
        )
        assert image.size == (96, 64), "what was given stays as it is"
    assert by_file.size == opened.size == (64, 96)
    assert by_file.tobytes() == opened.tobytes()
    assert mask.masks[0].size in ((64, 96), (96, 64))


def test_open_pictures_of_several_frames_or_closed_are_refused(contract):
    file = io.BytesIO()
    pattern((32, 32)).save(file, "GIF", save_all=True, append_images=[pattern((32, 32), 1)])
    with Image.open(file) as image, pytest.raises(RequestError, match="given as image: it has 2 frames"):
        Request.of(contract, "a", image=image)
    image = Image.open(turned())
    image.close()
    with pytest.raises(RequestError, match="cannot read the picture given as reference: "):
        Request.of(contract, "a", reference=image)


# Profiles


CURVES = {"sRGB": (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045), "2.2": (0, 2.2)}
"""A `parametricCurveType`: its kind, and its numbers."""
P3 = {"sRGB": (217, 42, 52), "2.2": (219, 37, 49)}
"""(200, 60, 60) of Display P3 in sRGB, with each of these curves."""


def p3(curve="2.2"):
    """A profile of the primaries of Display P3, as a file has it."""

    def number(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(*values):
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    kind, *numbers = CURVES[curve]
    curve = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(map(number, numbers))
    text = b"Display P3".decode().encode("utf-16-be")
    desc = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {
        b"desc": desc,
        b"wtpt": xyz(0.96420, 1.0, 0.82491),
        b"rXYZ": xyz(0.51512, 0.24120, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.15710, 0.06657, 0.78407),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value
    size = 128 + len(table) + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x04000000, b"mntr", b"RGB ", b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + b"".join(map(number, (0.9642, 1.0, 0.82491)))
    return header.ljust(128, b"\0") + table + data


def test_the_profiles_of_these_tests_are_display_p3():
    """From the definition: P3 to sRGB in linear light, both with white D65."""
    to_srgb = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
    levels = np.array([200, 60, 60]) / 255
    for curve, expected in P3.items():
        linear = ((levels + 0.055) / 1.055) ** 2.4 if curve == "sRGB" else levels**2.2
        found = 255 * (1.055 * (to_srgb @ linear) ** (1 / 2.4) - 0.055)
        np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_display_p3_becomes_srgb(mode, curve, tmp_path, contract):
    path, image = tmp_path / "p3.png", Image.new("RGB", (32, 32), (200, 60, 60))
    made = image.quantize(4) if mode == "P" else image.convert(mode)
    made.save(path, icc_profile=p3(curve))
    with Image.open(path) as opened:
        both = Request.of(contract, ["a", "b"], image=[path, opened]).images
        both += Request.of(contract, "a", reference=path, auto_resize=False).references
        mask = picture.read_mask(opened.convert("L"))
    for found in both:
        np.testing.assert_allclose(found.getpixel((5, 5)), P3[curve], atol=1)
        assert "icc_profile" not in found.info
    assert mask.getpixel((0, 0)) == Image.new("RGB", (1, 1), (200, 60, 60)).convert("L").getpixel((0, 0))


def test_srgb_and_broken_profiles_leave_colours_alone(caplog):
    image = pattern((32, 32))
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert picture.rgb(image).tobytes() == image.tobytes()
    assert caplog.messages == []
    for broken in (b"broken", p3()[:200], ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()):
        image.info["icc_profile"] = broken
        assert picture.rgb(image).tobytes() == image.tobytes()
    assert len(caplog.messages) == 3
    assert all("colour profile is ignored" in line and "\n" not in line for line in caplog.messages)


def test_transparency_and_profile_go_together():
    image = Image.new("RGBA", (4, 4), (200, 60, 60, 128))
    image.info["icc_profile"] = p3()
    found = srgb(image)
    assert found.mode == "RGBA"
    np.testing.assert_allclose(found.getpixel((0, 0)), (219, 37, 49, 128), atol=1)
