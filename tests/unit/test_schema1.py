"""Bundles of schema 1 still open: the last exporter and runtime of it made tests/data/schema1."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.cli import main
from flux_trt.runtime.errors import BundleError

OLD = Path(__file__).parents[1] / "data" / "schema1"
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.fixture
def fields():
    return json.loads((OLD / "bundle" / manifest.NAME).read_text())


def write(folder, fields):
    (folder / manifest.NAME).write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("task", EXPECTED)
def test_the_pictures_are_the_same(task, tmp_path, monkeypatch):
    for given in ("source.png", "mask.png"):
        shutil.copy(OLD / given, tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = [each.format(bundle=OLD / "bundle") for each in EXPECTED[task]["arguments"]]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    painted = json.loads(result.stdout.splitlines()[-1])["pictures"]
    for found, expected in zip(painted, EXPECTED[task]["pictures"], strict=True):
        pixels = np.asarray(Image.open(found["path"]))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected["sha256"]
        assert expected["parameters"].items() <= found.items()


def test_the_digest_is_that_of_the_file():
    bundle = Bundle.open(OLD / "bundle")
    assert bundle.digest == hashlib.sha256((OLD / "bundle" / manifest.NAME).read_bytes()).hexdigest()


def test_what_it_becomes_can_be_written(fields, tmp_path):
    found = manifest.read(OLD / "bundle")
    assert found.schema_version == manifest.SCHEMA
    assert list(found.stages) == ["clip", "t5", "conditioner", "denoiser", "vae_encoder", "vae_decoder"]
    assert found.model.channels == fields["model"]["channels"]
    assert (found.guidance.kind, found.guidance.default) == ("embedded", fields["defaults"]["guidance"])
    (tmp_path / manifest.NAME).write_text(found.dumps())
    assert manifest.read(tmp_path) == found


def test_what_it_becomes_is_what_a_build_writes(bundle):
    """flux-nano is of the same variant: all but the numbers of its checkpoint must be equal."""
    old, new = manifest.read(OLD / "bundle"), manifest.read(bundle("flux-nano"))
    assert old.encoders == new.encoders
    assert old.model.references == new.model.references
    assert old.model.noise == new.model.noise
    axes = {"axes": new.model.positions.axes}
    assert old.model.positions.model_copy(update=axes) == new.model.positions
    assert old.schedule == new.schedule
    assert {name: each.runs for name, each in old.stages.items()} == {
        name: each.runs for name, each in new.stages.items()
    }
    assert set(old.glue) == set(new.glue) - {"ab2"}, "a graph that no bundle of that time has"


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        (lambda f: f["scheduler"].update(use_dynamic_shifting=False), "schedule", {"kind": "constant"}),
        (lambda f: f.update(variant="dev", tasks=["generate"]), "references", None),
        (lambda f: f.update(variant="other"), "references", {"enters": "latents"}),
    ],
)
def test_what_decides_a_field(fields, tmp_path, change, field, expected):
    change(fields)
    found = manifest.read(write(tmp_path, fields)).model_dump()
    value = (found | found["model"])[field]
    assert value is None if expected is None else expected.items() <= value.items()


def test_a_model_without_guidance(fields, tmp_path):
    fields["model"]["guidance"] = False
    fields["stages"]["conditioner"]["inputs"] = fields["stages"]["conditioner"]["inputs"][:3]
    assert manifest.read(write(tmp_path, fields)).guidance.kind == "none"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f["model"].update(guidence=True), r"model\.guidence"),
        (lambda f: f["scheduler"].pop("shift"), r"scheduler\.shift"),
        (lambda f: f["defaults"].update(steps="3"), r"defaults\.steps"),
        (lambda f: f["tokenizers"]["clip"].update(file="../clip.json"), "not a plain path inside the bundle"),
        (lambda f: f["stages"].update(text=f["stages"]["t5"]), r"stages\.text"),
        (lambda f: f["stages"]["t5"].pop("key"), r"stages\.t5\.key"),
        (lambda f: f["files"].pop("t5.onnx"), r"t5\.onnx"),
    ],
)
def test_it_is_read_as_strictly_as_ever(fields, tmp_path, change, named):
    change(fields)
    with pytest.raises(BundleError, match=rf"{named}.*build the bundle again"):
        manifest.read(write(tmp_path, fields))
