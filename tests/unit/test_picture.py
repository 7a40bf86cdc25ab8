import os

import numpy as np
import pytest
from PIL import Image

from flux_trt.runtime import picture
from flux_trt.runtime.errors import RequestError


@pytest.fixture
def image():
    made = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    made.info["parameters"] = '{"prompt": "caf\\u00e9"}'
    return made


def test_pixels_and_parameters_survive(image, tmp_path):
    picture.write(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as found:
        assert found.info["parameters"] == image.info["parameters"]
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(picture.read(tmp_path / "a.png")), np.asarray(image))


def test_the_old_picture_stays_whole_when_writing_fails(image, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    picture.write(image, path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RequestError, match=r"cannot write .*a\.png: No space left"):
        picture.write(Image.new("RGB", (2, 2)), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_a_written_picture_has_the_usual_permissions(image, tmp_path):
    picture.write(image, tmp_path / "a.png")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_missing_truncated_and_foreign_files_are_one_line(image, tmp_path):
    with pytest.raises(RequestError, match="no picture"):
        picture.read(tmp_path / "none.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    picture.write(Image.fromarray(noise), tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"text", b""):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(RequestError, match="cannot read the picture"):
            picture.read(tmp_path / "b.png")
