"""Pictures into files: whole or not at all, with their texts, and part files of the dead removed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from safetensors.numpy import save_file
from sd_parsers import ParserManager

from flux_trt.runtime import geninfo, save
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.lora.chosen import chosen
from flux_trt.runtime.pictures import part, texts, written

FACTS = {
    "task": "generate",
    "prompt": 'a caf\u00e9, "red": 1\non two lines',
    "negative": "blur, text",
    "true_cfg": 4.0,
    "guidance": 3.5,
    "seed": 2**64 - 1,
    "steps": 12,
    "width": 64,
    "height": 32,
    "variant": "kontext",
    "content": "0123456789abcdef",
    "flux_trt": "0.1.0",
}
NAMES = ["a.png", "a.jpg", "a.JPEG", "a.webp"]


@pytest.fixture
def image():
    made = Image.fromarray(np.arange(64 * 32 * 3, dtype=np.uint8).reshape(32, 64, 3))
    made.info["flux_trt"] = json.dumps(FACTS)
    made.info["parameters"] = geninfo.text(FACTS, "FLUX.1")
    return made


@pytest.mark.parametrize("name", NAMES)
def test_both_texts_survive_in_every_format(image, tmp_path, name):
    save(image, tmp_path / name)
    assert texts.recorded(tmp_path / name) == FACTS
    with Image.open(tmp_path / name) as found:
        assert found.format == {"a.png": "PNG", "a.webp": "WEBP"}.get(name, "JPEG")
        if name == "a.png":
            assert found.info == {key: image.info[key] for key in ("flux_trt", "parameters")}
            np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_reader_finds_what_it_looks_for(image, tmp_path, name):
    save(image, tmp_path / name)
    found = ParserManager().parse(tmp_path / name)
    (sampler,) = found.samplers
    assert (sampler.name, sampler.model.name, sampler.model.hash) == ("Euler", "FLUX.1 kontext", "0123456789")
    assert [each.value for each in sampler.prompts] == [FACTS["prompt"]]
    assert [each.value for each in sampler.negative_prompts] == ["blur, text"]
    assert sampler.parameters == {"cfg_scale": "4", "seed": str(2**64 - 1), "steps": "12"}
    assert (found.metadata["Size"], found.metadata["Distilled CFG Scale"]) == ("64x32", "3.5")


def test_the_text_without_what_there_is_not():
    facts = {**FACTS, "prompt": "", "true_cfg": None, "guidance": None, "negative": "", "strength": 0.25}
    assert geninfo.text(facts, "FLUX.1") == (
        f"Steps: 12, Sampler: Euler, CFG scale: 1, Seed: {2**64 - 1}, Size: 64x32, Model hash: 0123456789, "
        "Model: FLUX.1 kontext, Denoising strength: 0.25, Task: generate, Version: flux_trt 0.1.0"
    )


def test_loras_are_named_as_the_webui_names_them(tmp_path):
    path = tmp_path / "a, b:c.safetensors"
    metadata = {"ss_output_name": "x", "note": "any"}
    save_file({"a": np.arange(5, dtype=np.float32)}, path, metadata=metadata)
    (one,) = chosen((path, 0.5))
    # kohya-ss/sd-scripts, library/train_util.py, addnet_hash_safetensors: what is behind the header.
    data = path.read_bytes()
    behind = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert (one.sha256, one.tensors) == (hashlib.sha256(data).hexdigest(), behind)
    save_file({"a": np.arange(5, dtype=np.float32)}, path, metadata={"other": "x"})
    (other,) = chosen(path)
    assert other.tensors == behind
    assert other.sha256 != one.sha256
    facts = {**FACTS, "lora": [one.record, {**other.record, "path": "there/style.safetensors"}]}
    prompt, negative, pairs = read_as_webui(geninfo.text(facts, "FLUX.1"))
    assert prompt == f"{FACTS['prompt']} <lora:a bc:0.5> <lora:style:1>"
    assert negative == "blur, text"
    assert pairs["Lora hashes"] == f"a bc: {behind[:12]}, style: {behind[:12]}"


# AUTOMATIC1111/stable-diffusion-webui 1.10, modules/infotext_utils.py.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read_as_webui(text):
    """Its parse_generation_parameters, as far as prompts, pairs and quotes go."""
    *lines, last = text.strip().split("\n")
    if len(PAIR.findall(last)) < 3:
        lines.append(last)
        last = ""
    prompt, negative, target = "", "", "prompt"
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            target, line = "negative", line[16:].strip()
        if target == "prompt":
            prompt += ("" if prompt == "" else "\n") + line
        else:
            negative += ("" if negative == "" else "\n") + line
    pairs = {}
    for name, value in PAIR.findall(last):
        pairs[name] = json.loads(value) if value[:1] == value[-1:] == '"' else value
    return prompt, negative, pairs


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_values_with_separators_are_quoted_as_the_webui_reads_them(variant):
    variant = " ".join(variant.split())
    facts = {**FACTS, "variant": f"x {variant} y".replace("\0", "")}
    prompt, negative, pairs = read_as_webui(geninfo.text(facts, "F"))
    assert (prompt, negative) == (FACTS["prompt"], "blur, text")
    assert pairs["Model"] == f"F {facts['variant']}"
    assert (pairs["Steps"], pairs["Seed"], pairs["Size"]) == ("12", str(2**64 - 1), "64x32")


def test_quality_is_for_formats_that_lose(image, tmp_path):
    rng = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("a.jpg", "a.webp"):
        sizes = []
        for quality in (10, 90, None):
            written.write(Image.fromarray(rng), tmp_path / name, quality)
            sizes.append((tmp_path / name).stat().st_size)
        assert sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(RequestError, match=r"is a PNG, which loses nothing; leave the quality out"):
        written.write(image, tmp_path / "b.png", 90)
    with pytest.raises(RequestError, match="quality 0 is not possible"):
        written.write(image, tmp_path / "b.jpg", 0)
    with pytest.raises(RequestError, match=r"b\.gif is not a \.png, \.jpg, \.jpeg or \.webp name"):
        written.write(image, tmp_path / "b.gif")
    assert features.check("webp")


def test_texts_that_a_jpeg_cannot_hold_are_warned_of(image, tmp_path, caplog):
    for letters, kept in ((30_000, True), (70_000, False)):
        caplog.clear()
        facts = {**FACTS, "prompt": "x" * letters}
        image.info |= {"flux_trt": json.dumps(facts), "parameters": geninfo.text(facts, "FLUX.1")}
        for name in ("a.jpg", "a.png", "a.webp"):
            written.write(image, tmp_path / name)
            if kept or name != "a.jpg":
                assert texts.recorded(tmp_path / name) == facts
        assert ["too long for a JPEG" in each.message for each in caplog.records] == [True]
    with pytest.raises(RequestError, match=r"a\.jpg does not say how it was painted"):
        texts.recorded(tmp_path / "a.jpg")


def test_pictures_of_earlier_versions_are_read(tmp_path):
    info = texts.png({"parameters": '{"prompt": "a", "flux_trt": "0.1.0"}'})
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    assert texts.recorded(tmp_path / "a.png")["prompt"] == "a"


@pytest.mark.parametrize("text", ["a red circle\nSteps: 3", "[1]", "{}", '{"prompt": 1', "[" * 100_000])
def test_foreign_texts_are_not_ours(tmp_path, text):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=texts.png({"parameters": text}))
    with pytest.raises(RequestError, match="does not say how it was painted"):
        texts.recorded(tmp_path / "a.png")


@pytest.mark.parametrize("name", NAMES)
def test_the_old_picture_stays_whole_when_writing_fails(image, tmp_path, monkeypatch, name):
    path = tmp_path / name
    written.write(image, path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RequestError, match=r"cannot write .*a\.\w+: No space left"):
        written.write(Image.new("RGB", (2, 2)), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_written_picture_has_the_usual_permissions(image, tmp_path):
    written.write(image, tmp_path / "a.png")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


WRITER = """
import os, sys, time
from pathlib import Path
from flux_trt.runtime.pictures import part
os.fsync = lambda descriptor: (print('in the middle', flush=True), time.sleep(60))
part.write(Path(sys.argv[1]), b'half')
"""


def test_part_files_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path):
    """A writer that is stopped in the middle, then killed."""
    command = [sys.executable, "-c", WRITER, tmp_path / "a.png"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        (half,) = tmp_path.glob(".a.png.*.part")
        os.utime(half, (0, 0))
        part.sweep(tmp_path)
        assert half.exists(), "its writer holds a lock on it, however old it is"
        writer.send_signal(signal.SIGKILL)
    assert half.exists()
    others = [tmp_path / name for name in (".notes.txt.4194400.part", "a.png.3.part", ".a.png.x.part")]
    for each in others:
        each.touch()
    part.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_part_files_of_earlier_versions_go_when_their_process_is_gone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    dead, living = tmp_path / f".a.png.{gone.pid}.part", tmp_path / f".b.webp.{os.getpid()}.part"
    dead.touch()
    living.touch()
    part.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [living]


def test_on_a_disk_without_locks_only_old_ones_go(tmp_path, monkeypatch):
    monkeypatch.setattr(part.lock, "hold", lambda descriptor: "unknown")
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    young, old = (tmp_path / f".{name}.png.{gone.pid}.part" for name in ("young", "old"))
    young.touch()
    old.touch()
    os.utime(old, (time.time() - part.OLD - 10,) * 2)
    part.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [young], "another machine may be writing it"
