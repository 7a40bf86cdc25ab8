"""Progress, as people and programs see it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from flux_trt.runtime import Pipeline, progress
from flux_trt.runtime.cli import main
from flux_trt.runtime.pictures import picture, written


def told(kind, capsys, **asked):
    with progress.shown(kind, **asked) as tell:
        for done in range(1, 101):
            tell("denoise", done, 100)
        tell("decode", 1, 1)
    return capsys.readouterr().err.splitlines()


def test_lines_at_each_tenth(capsys):
    assert told("plain", capsys) == [*(f"denoise: {n} of 100" for n in range(10, 101, 10)), "decode: 1 of 1"]


def test_json_tells_everything(capsys):
    lines = [json.loads(line) for line in told("json", capsys)]
    assert len(lines) == 101
    assert lines[4] == {"what": "denoise", "done": 5, "total": 100}


def test_nothing_when_nothing_is_wanted(capsys):
    assert told("none", capsys) == []


def test_without_a_terminal_lines_are_far_apart(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    assert told("auto", capsys) == [], "quick work leaves no line"
    with progress.bars(of_bytes=True) as tell:
        for second in range(60):
            now[0] = second
            tell("hash", second * 10**6, 60 * 10**6)
    assert capsys.readouterr().err.splitlines() == [f"hash: {n} of 60 MB" for n in (10, 20, 30, 40, 50)]


def run(*arguments):
    return CliRunner().invoke(main, ["generate", *map(str, arguments)])


def test_progress_of_a_command(tiny, tmp_path):
    out = tmp_path / "a.png"
    plain = run(tiny, "a", "-o", out, "--progress", "plain")
    assert (plain.exit_code, plain.stdout) == (0, f"{out}\n")
    assert plain.stderr.splitlines() == [
        "encode: 1 of 1",
        "denoise: 1 of 3",
        "denoise: 2 of 3",
        "denoise: 3 of 3",
        "decode: 1 of 1",
    ]
    lines = run(tiny, "a", "-o", out, "--progress", "json").stderr.splitlines()
    assert [json.loads(line)["what"] for line in lines] == ["encode", *["denoise"] * 3, "decode"]
    assert run(tiny, "a", "-o", out).stderr == ""
    refused = run(tiny, "a", "-o", out, "--progress", "loud")
    assert (refused.exit_code, "'loud' is not one of" in refused.stderr) == (2, True)


def test_a_picture_that_is_encoded_is_told_of(bundle):
    heard = []
    image = Image.new("RGB", (32, 32), "red")
    with Pipeline.load(bundle("flux-nano"), "onnxruntime", "cpu") as pipeline:
        pipeline.generate(
            ["a", "b"], image=[image, image.copy()], steps=2, progress=lambda *seen: heard.append(seen)
        )
        pipeline.generate("a", image=image, steps=2, progress=None)
        pipeline.decode(pipeline.encode_picture(np.asarray(image), None).mode[None], (2, 2), None)
    assert [seen for seen in heard if seen[0] == "encode pictures"] == [
        ("encode pictures", 1, 2),
        ("encode pictures", 2, 2),
    ]


def test_previews_are_written_on_the_way(tiny, tmp_path, monkeypatch):
    out, preview, seen = tmp_path / "a.png", tmp_path / "p.png", []
    write, read = written.write, picture.read

    def noted(image, path, *quality):
        write(image, path, *quality)
        seen.append((path.name, read(path).size))

    monkeypatch.setattr(written, "write", noted)
    asked = [tiny, "a", "b", "--batch", 2, "-o", out, "--steps", 8]
    assert run(*asked, "--preview", preview).exit_code == 0
    assert seen == [*[("p.png", (96, 32))] * 3, ("a-0.png", (48, 32)), ("a-1.png", (48, 32))]
    seen.clear()
    assert run(*asked, "--preview", preview, "--preview-every", 5).exit_code == 0
    assert [name for name, _ in seen] == ["p.png", "a-0.png", "a-1.png"]
    assert not list(tmp_path.glob(".*"))
    # The velocity of the tiny bundle pulls to a grey: what is predicted is close to what comes out.
    images = [np.asarray(read(tmp_path / f"a-{index}.png"), float) for index in range(2)]
    assert np.abs(np.asarray(read(preview), float) - np.concatenate(images, 1)).mean() < 12


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--preview", "out.png", "-o", "out.png"], "give --preview another name"),
        (["--preview", "p.png", "--memory", "sequential"], "use --memory resident"),
        (["--preview", "no/folder/p.png"], "does not exist"),
        (["--preview-every", "2"], "has no --preview"),
        (["--preview", "p.png", "--jobs", "jobs.jsonl"], "not of --jobs"),
    ],
)
def test_previews_that_cannot_be(tiny, tmp_path, monkeypatch, options, line):
    monkeypatch.chdir(tmp_path)
    found = run(tiny, *([] if "--jobs" in options else ["a"]), *options)
    assert found.exit_code != 0
    assert line in found.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
