"""What hostile files did, one test for each kind of fault that was mended."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import hostile_corpus as corpus
import pytest

from flux_trt.exporter.checkpoints.diffusers import read_part
from flux_trt.exporter.checkpoints.tensorfile import read_header
from flux_trt.exporter.quantise import calibration
from flux_trt.runtime.again import recorded
from flux_trt.runtime.bundle import engine, manifest, plain
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.errors import BuildError, BundleError, CheckpointError, FluxTrtError, RequestError


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000])
def test_a_manifest_without_an_end_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match="is not JSON"):
        manifest.read(tmp_path)


def test_a_manifest_that_is_a_pipe_or_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    for name in ("pipe", "link"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "bundle.json")
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "link" / "bundle.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(BundleError, match="no plain file"):
        manifest.read(tmp_path / "pipe")
    with pytest.raises(BundleError, match="leaves its folder"):
        manifest.read(tmp_path / "link")


def test_an_engine_record_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    made = corpus.engine()
    place = tmp_path / made.recipe.folder
    place.mkdir(parents=True)
    (tmp_path / "secret.json").write_text(made.dumps())
    (place / engine.RECORD).symlink_to(tmp_path / "secret.json")
    with pytest.raises(BundleError, match="leaves its folder"):
        engine.engines(tmp_path)


def test_a_calibration_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.json")
    with pytest.raises(BuildError, match="no plain file"):
        calibration.read(tmp_path / "c.json")


def test_a_file_beyond_its_limit_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a" * 11)
    assert plain.text(tmp_path / "x", limit=11) == "a" * 11
    with pytest.raises(ValueError, match="more than 10 bytes"):
        plain.text(tmp_path / "x", limit=10)


@pytest.mark.parametrize("listed", [[], "a", {"a": 1}, {"a": ["b"]}, {"a": "\ud800"}, {"a": "b\0"}])
def test_an_index_that_names_no_files_is_refused(listed: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(CheckpointError, match="does not name the files"):
        read_part("clip", tmp_path)


def test_a_shape_that_no_machine_counts_is_refused(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 1e308]}
    text = json.dumps({"a": tensor}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "m.safetensors")


def test_a_tokenizer_without_its_unknown_token_is_one_line(tmp_path: Path) -> None:
    root = shutil.copytree(corpus.tiny(), tmp_path / "bundle")
    spec = next(iter(manifest.read(root).tokenizers.values()))
    text = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    (root / spec.file).write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": text}))
    with pytest.raises(BundleError, match="is not a tokenizer"):
        Window(root, spec).of(["zebra"])


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\ud800", "\u202e", "x" * 70_000])
def test_a_message_is_one_printable_line_whatever_it_names(name: str) -> None:
    for kind in (FluxTrtError, RequestError):
        said = str(kind(f"no {name}; give another"))
        assert said.isprintable()
        assert len(said) < 4000


@pytest.mark.parametrize("image", [{}, {"sha256": "0"} | {"path": 3}, {"path": "a.png"}, 5, [[]], "a.png"])
def test_a_picture_that_names_no_picture_it_came_from_is_refused(image: object, tmp_path: Path) -> None:
    said = json.dumps(corpus.PAINTED | {"image": image or [image]})
    (tmp_path / "p.png").write_bytes(corpus.painted(said, "PNG"))
    with pytest.raises(RequestError, match="does not say its image"):
        recorded(tmp_path / "p.png")
