import json

import pytest

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import BundleError


@pytest.fixture
def fields(tiny):
    return json.loads((tiny / manifest.NAME).read_text())


def write(folder, fields):
    (folder / manifest.NAME).write_text(json.dumps(fields))
    return folder


def test_written_text_reads_back_equal_and_is_canonical(tiny, tmp_path):
    found = manifest.read(tiny)
    (tmp_path / manifest.NAME).write_text(found.dumps())
    assert manifest.read(tmp_path) == found
    assert manifest.read(tmp_path).dumps() == found.dumps()


def test_unknown_fields_are_refused_by_name(fields, tmp_path):
    fields["model"]["guidence"] = True
    with pytest.raises(BundleError, match=r"model\.guidence"):
        manifest.read(write(tmp_path, fields))


def test_missing_fields_are_refused_by_name(fields, tmp_path):
    del fields["schedule"]["mu"]
    with pytest.raises(BundleError, match=r"schedule\.exponential\.mu"):
        manifest.read(write(tmp_path, fields))


def test_types_are_not_converted(fields, tmp_path):
    fields["defaults"]["steps"] = "3"
    with pytest.raises(BundleError, match=r"defaults\.steps"):
        manifest.read(write(tmp_path, fields))


def test_newer_schema_asks_for_a_newer_tool(fields, tmp_path):
    fields["schema_version"] = manifest.SCHEMA + 1
    fields["something_new"] = 1
    with pytest.raises(BundleError, match="install a newer flux_trt"):
        manifest.read(write(tmp_path, fields))


@pytest.mark.parametrize(
    "path", ["../clip.onnx", "/clip.onnx", "a/../clip.onnx", "a\\clip.onnx", "c:clip.onnx"]
)
def test_paths_that_leave_the_bundle_are_refused(fields, tmp_path, path):
    fields["files"][path] = fields["files"]["clip.onnx"]
    fields["stages"]["clip"]["graph"] = path
    with pytest.raises(BundleError, match="not a plain path inside the bundle"):
        manifest.read(write(tmp_path, fields))


def test_every_used_file_needs_a_hash(fields, tmp_path):
    del fields["files"]["denoiser.safetensors"]
    with pytest.raises(BundleError, match=r"denoiser\.safetensors"):
        manifest.read(write(tmp_path, fields))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}'])
def test_broken_manifests_are_one_clear_line(tmp_path, text):
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json.*build the bundle again") as fault:
        manifest.read(tmp_path)
    assert "\n" not in str(fault.value)


def test_folder_without_manifest(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle\.json in"):
        manifest.read(tmp_path / "nowhere")
