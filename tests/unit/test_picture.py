import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import picture


def test_missing_truncated_and_foreign_files_are_one_line(tmp_path):
    with pytest.raises(RequestError, match="no picture"):
        picture.read(tmp_path / "none.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"text", b""):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(RequestError, match="cannot read the picture .*; give a whole PNG or JPEG"):
            picture.read(tmp_path / "b.png")
    with pytest.raises(RequestError, match="is a folder; name a picture in it"):
        picture.read(tmp_path)
    with pytest.raises(RequestError, match="Not a directory; check its name"):
        picture.read(tmp_path / "a.png" / "c.png")
    with pytest.raises(RequestError, match="cannot read the picture"):
        picture.read("nul\0byte.png")


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refused)  # chmod means nothing to root
    with pytest.raises(RequestError, match="Permission denied; check its name and permissions"):
        picture.read(tmp_path / "a.png")


def saved(image, tmp_path, kind, **options):
    path = tmp_path / f"a.{kind}"
    image.save(path, **options)
    return path


def colour(path, place=(0, 0)):
    found = picture.read(path)
    assert found.mode == "RGB"
    return found.getpixel(place)


def test_the_picture_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (48, 32), "red")
    image.paste("blue", (0, 0, 16, 32))
    for orientation, turned in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("png", "webp", "tiff"):
            path = saved(image, tmp_path, kind, exif=exif, **({"lossless": True} if kind == "webp" else {}))
            np.testing.assert_array_equal(np.asarray(picture.read(path)), np.asarray(image.transpose(turned)))


def test_alpha_lies_over_white_and_in_a_mask_over_black(tmp_path):
    path = saved(Image.new("RGBA", (4, 4), (200, 100, 0, 51)), tmp_path, "png")  # a fifth
    assert colour(path) == (244, 224, 204)
    assert set(picture.read_mask(path).get_flattened_data()) == {51}, (
        "one colour: a stroke, as opaque as it is"
    )
    path = saved(Image.new("LA", (4, 4), (255, 0)), tmp_path, "png")
    assert colour(path) == (255, 255, 255)
    assert picture.read_mask(path).getpixel((0, 0)) == 0
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert colour(saved(palette, tmp_path, "png")) == (10, 20, 30)
    assert colour(saved(palette, tmp_path, "png", transparency=1)) == (255, 255, 255)
    assert colour(saved(palette, tmp_path, "gif", transparency=1)) == (255, 255, 255)
    assert colour(saved(palette, tmp_path, "png", transparency=b"\xff\x00")) == (255, 255, 255)
    assert colour(saved(Image.new("RGB", (4, 4), "red"), tmp_path, "png", transparency=(255, 0, 0))) == (
        255,
        255,
        255,
    )


def test_other_kinds_of_colour_become_rgb(tmp_path):
    assert colour(saved(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), tmp_path, "tiff")) == (0, 255, 255)
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    path = saved(ImageCms.applyTransform(Image.new("RGB", (4, 4), (200, 30, 60)), lab), tmp_path, "tiff")
    np.testing.assert_allclose(colour(path), (200, 30, 60), atol=3)
    assert colour(saved(Image.new("1", (4, 4), 1), tmp_path, "png")) == (255, 255, 255)
    assert colour(saved(Image.new("L", (4, 4), 77), tmp_path, "png")) == (77, 77, 77)
    assert picture.read_mask(saved(Image.new("L", (4, 4), 77), tmp_path, "png")).getpixel((0, 0)) == 77


def png(bits, kind, rows):
    """A PNG by hand: Pillow does not write 16 bits a channel."""
    height, width = len(rows), len(rows[0]) // (bits // 8 * {0: 1, 2: 3}[kind])
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path, kind):
    values = np.array([[0, 128, 129, 257, 1000, 32896, 65406, 65407, 65535]], np.uint16)
    path = saved(Image.fromarray(values), tmp_path, kind)
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(picture.read_mask(path)), expected)
    np.testing.assert_array_equal(np.asarray(picture.read(path)), np.repeat(expected[..., None], 3, axis=2))
    for mode, dtype in (("I;16B", ">u2"), ("I", "<i4")):
        image = Image.frombytes(mode, (9, 1), values.astype(dtype).tobytes())
        np.testing.assert_array_equal(np.asarray(picture.grey(image)), expected)


def test_sixteen_bits_of_colour_keep_their_upper_eight(tmp_path):
    (tmp_path / "a.png").write_bytes(png(16, 2, [struct.pack(">3H", 0x1234, 0x80FF, 0xFFFF)]))
    assert colour(tmp_path / "a.png") == (0x12, 0x80, 0xFF)


@pytest.mark.parametrize(
    ("values", "why"), [(np.array([[0.5]], np.float32), "floats"), (np.array([[70000]], np.int32), "16 bits")]
)
def test_numbers_without_a_known_white_are_refused(tmp_path, values, why):
    path = saved(Image.fromarray(values), tmp_path, "tiff")
    with pytest.raises(RequestError, match=rf"a\.tiff: the values .*{why}.*; save it with 8 or 16 bits"):
        picture.read(path)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_frames_and_pages_are_refused(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(3)]
    path = saved(frames[0], tmp_path, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(RequestError, match="it has 3 frames; save the one you mean"):
        picture.read(path)


def test_of_a_jpeg_with_more_inside_the_first_is_taken(tmp_path):
    first, second = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16), "black")
    path = saved(first, tmp_path, "mpo", save_all=True, append_images=[second])
    assert colour(path) == (255, 255, 255)


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    """The file says 13378 x 13378 and holds no pixels: decoding it would say so."""
    huge = png(8, 0, [b"\0"]).replace(struct.pack(">II", 1, 1), struct.pack(">II", 13378, 13378))
    ihdr = huge.index(b"IHDR")
    crc = struct.pack(">I", zlib.crc32(huge[ihdr : ihdr + 17]))
    (tmp_path / "a.png").write_bytes(huge[: ihdr + 17] + crc + huge[ihdr + 21 :])
    with pytest.raises(RequestError, match="too many pixels; scale it down to 179 megapixels or less"):
        picture.read(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some programs set it
    with pytest.raises(RequestError, match="it has 13378x13378 pixels; scale it down"):
        picture.read(tmp_path / "a.png")


def test_large_pictures_do_not_warn(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # 64 pixels warn now, and 81 would be refused
    assert colour(saved(Image.new("RGB", (8, 8), "red"), tmp_path, "png")) == (255, 0, 0)


def files():
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
    ):
        made = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(made, kind, **options, **({} if kind == "GIF" else {"exif": exif}))
        yield made.getvalue()


@settings(deadline=None)
@given(
    st.sampled_from(list(files())),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path_factory, whole, damage):
    content = bytearray(whole)
    for place, value in damage:
        content[int(place * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        assert picture.read(path).mode == "RGB"
    except RequestError as fault:
        assert "\n" not in str(fault) and "; " in str(fault)
