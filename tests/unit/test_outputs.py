"""Where the commands write: nothing that is there is lost, and what is in the way is said before any work."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from flux_trt.runtime import recorded
from flux_trt.runtime.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu"])


def line(result):
    """The one line of an expected fault."""
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    (found,) = result.stderr.splitlines()
    return found


def test_the_same_command_twice_is_no_fault(tiny, tmp_path):
    words = ("generate", tiny, "a", "-n", 2, "-o", tmp_path / "a.png")
    contents = []
    for _ in range(2):
        found = run(*words)
        assert (found.exit_code, found.stderr) == (0, ""), found.output
        contents.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])
    assert contents[0] == contents[1] and len(contents[0]) == 2


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("there", ["another seed", "a photo", "text", "a link to nothing"])
def test_another_file_is_replaced_only_by_force(tiny, tmp_path, name, there, monkeypatch):
    path = tmp_path / name
    if there == "another seed":
        assert run("generate", tiny, "a", "--seed", 1, "-o", path).exit_code == 0
    elif there == "a photo":
        Image.new("RGB", (8, 8)).save(path)
    elif there == "text":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = path.readlink() if path.is_symlink() else path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("flux_trt.runtime.session.connect", lambda *all, **more: 1 / 0)
        found = line(run("generate", tiny, "a", "-o", path))
    assert f"{path} is there and is another file (" in found
    assert found.endswith("; give another name, or --force to replace it")
    assert ("it differs in seed" in found) == (there == "another seed")
    assert (path.readlink() if path.is_symlink() else path.read_bytes()) == before
    assert run("generate", tiny, "a", "-o", path, "--force").exit_code == 0
    assert recorded(path).parameters["seed"] == 0


def test_one_of_several_in_the_way_stops_all(tiny, tmp_path):
    (tmp_path / "a-2.png").write_text("mine")
    assert "a-2.png is there" in line(run("generate", tiny, "a", "-n", 3, "-o", tmp_path / "a.png"))
    assert [each.name for each in tmp_path.iterdir()] == ["a-2.png"]


def test_an_edit_is_as_careful(bundle, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(photo)
    words = ("edit", bundle("dev-like"), "--image", photo, "--source", "a", "--target", "b", "--steps", 2)
    assert "photo.png is there" in line(run(*words, "-o", photo)), "its own input"
    for _ in range(2):
        assert run(*words, "-o", tmp_path / "e.png").exit_code == 0
    assert "it differs in n_avg" in line(run(*words, "--n-avg", 2, "-o", tmp_path / "e.png"))


@pytest.mark.parametrize(("steps", "walked"), [(1, 1), (2, 2), (12, 10), (28, 24), (50, 43)])
def test_an_edit_of_any_steps_walks_the_authors_share(bundle, tmp_path, steps, walked):
    from flux_trt.runtime.bundle.bundle import Bundle
    from flux_trt.runtime.tasks.request import Request

    manifest = Bundle.open(bundle("dev-like"), check=False).manifest
    photo = Image.new("RGB", (32, 32))
    assert Request.of_edit(manifest, photo, "a", "b", steps=steps).moves == walked
    photo.save(tmp_path / "photo.png")
    if steps == 12:
        words = ("--image", tmp_path / "photo.png", "--source", "a", "--target", "b", "--steps", steps)
        found = run("edit", bundle("dev-like"), *words, "-o", tmp_path / "e.png")
        assert found.exit_code == 0, found.output
        assert recorded(tmp_path / "e.png").parameters["n_max"] == walked


def test_quality(tiny, tmp_path):
    sizes = []
    for quality in (5, 100):
        path = tmp_path / f"{quality}.jpg"
        assert run("generate", tiny, "a", "--quality", quality, "-o", path).exit_code == 0
        sizes.append(path.stat().st_size)
    assert sizes[0] < sizes[1]
    assert "is a PNG, which loses nothing" in line(
        run("generate", tiny, "a", "--quality", 9, "-o", tmp_path / "a.png")
    )


def test_a_run_cleans_up_after_a_killed_one(tiny, tmp_path):
    (tmp_path / ".a.png.4194400.part").write_bytes(b"half")
    assert run("generate", tiny, "a", "-o", tmp_path / "b.png").exit_code == 0
    assert [each.name for each in tmp_path.iterdir()] == ["b.png"]
    (tmp_path / ".c.webp.4194400-7.part").write_bytes(b"half")
    (tmp_path / "j.jsonl").write_text('{"prompt": "a", "output": "d.jpg"}\n')
    assert run("generate", tiny, "--jobs", tmp_path / "j.jsonl").exit_code == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "b.png",
        "d.jpg",
        "j.jsonl",
        "j.results.jsonl",
    ]


def test_a_failure_in_the_middle_says_what_is_there(tiny, tmp_path, monkeypatch):
    from flux_trt.runtime.errors import PaintError
    from flux_trt.runtime.pipeline import Pipeline

    decode, count = Pipeline.decode, [0]

    def failing(self, *all):
        count[0] += 1
        if count[0] == 3:
            raise PaintError("not finite; use another")
        return decode(self, *all)

    monkeypatch.setattr(Pipeline, "decode", failing)
    found = run("generate", tiny, "a", "-n", 4, "-o", tmp_path / "a.png")
    assert found.exit_code == 1
    assert found.stdout.split() == [str(tmp_path / f"a-{k}.png") for k in range(2)]
    assert found.stderr == "Error: not finite; use another\n"
