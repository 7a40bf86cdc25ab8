import shutil

import pytest

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import BundleError


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def test_a_whole_bundle_opens(tiny):
    bundle = Bundle.open(tiny)
    assert bundle.stage("clip").graph == "clip.onnx"
    assert len(bundle.digest) == 64


def test_a_missing_file_is_named(copy):
    (copy / "t5.onnx").unlink()
    with pytest.raises(BundleError, match=r"t5\.onnx is missing; copy"):
        Bundle.open(copy)


def test_a_truncated_file_is_named_even_without_check(copy):
    weights = copy / "denoiser.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"denoiser\.safetensors has \d+ bytes, not"):
        Bundle.open(copy, check=False)


def test_one_flipped_bit_is_found_by_the_check_alone(copy):
    weights = copy / "denoiser.safetensors"
    content = bytearray(weights.read_bytes())
    content[3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"denoiser\.safetensors is not the file that was built"):
        Bundle.open(copy)
    assert Bundle.open(copy, check=False).root == copy


def test_a_changed_manifest_changes_the_digest(copy, tiny):
    text = (copy / manifest.NAME).read_text()
    (copy / manifest.NAME).write_text(text.replace('"hand-made"', '"hand_made"'))
    assert Bundle.open(copy).digest != Bundle.open(tiny).digest


def test_a_link_that_leaves_the_bundle_is_refused(copy, tmp_path):
    outside = shutil.move(copy / "clip.onnx", tmp_path / "outside.onnx")
    (copy / "clip.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"clip\.onnx leaves the bundle"):
        Bundle.open(copy)


def test_links_inside_and_to_the_bundle_are_fine(copy, tmp_path):
    (copy / "clip.onnx").rename(copy / "real.onnx")
    (copy / "clip.onnx").symlink_to("real.onnx")
    (tmp_path / "alias").symlink_to(copy)
    Bundle.open(tmp_path / "alias")


def test_a_folder_in_the_place_of_a_file_is_refused(copy):
    (copy / "clip.onnx").unlink()
    (copy / "clip.onnx").mkdir()
    with pytest.raises(BundleError, match=r"clip\.onnx is missing"):
        Bundle.open(copy)


def test_a_stage_that_a_partial_bundle_lacks(tiny):
    with pytest.raises(BundleError, match="partial bundle without the stage vae_encoder"):
        Bundle.open(tiny).stage("vae_encoder")
