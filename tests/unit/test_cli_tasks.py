"""The picture options of `flux-run`, its edit command, and its jobs."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from flux_trt.runtime.cli import main
from flux_trt.runtime.pictures import picture
from flux_trt.runtime.tasks.sources import digest


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def fault(result):
    """The one line of an expected fault."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    return line


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    ramp = np.linspace(0, 255, 50 * 40 * 3).reshape(40, 50, 3)
    Image.fromarray(ramp.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def kontext(bundle):
    return bundle("kontext-like")


def photo_record(photo):
    return {"sha256": digest(picture.read(photo)), "path": str(photo)}


def parameters(path):
    with Image.open(path) as image:
        return image.size, json.loads(image.info["flux_trt"])


def test_a_picture_is_painted_at_its_own_size(kontext, photo, tmp_path):
    out = tmp_path / "a.png"
    result = run("generate", kontext, "a", "--image", photo, "--strength", 0.5, "--steps", 2, "-o", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
    size, found = parameters(out)
    assert size == (48, 32), "cut to whole patches"
    assert (found["task"], found["strength"]) == ("image", 0.5)


def test_outpainting_extends_the_canvas(bundle, photo, tmp_path):
    out = tmp_path / "a.png"
    arguments = ["--image", photo, "--outpaint", "0,0,14,8", "--steps", 1, "--paste", "-o", out]
    result = run("generate", bundle("fill-like"), "a", *arguments)
    assert result.exit_code == 0, result.output
    assert parameters(out)[0] == (64, 48)
    with Image.open(out) as painted, Image.open(photo) as given:
        np.testing.assert_array_equal(np.asarray(painted)[:40, :50], np.asarray(given))


def test_canny_takes_the_edges(bundle, photo, tmp_path):
    arguments = ["--canny", photo, "--steps", 1, "-o", tmp_path / "a.png"]
    result = run("generate", bundle("canny-like"), "a", *arguments)
    assert result.exit_code == 0, result.output
    assert parameters(tmp_path / "a.png")[1]["task"] == "control"


def test_an_edit(kontext, photo, tmp_path):
    out = tmp_path / "a.png"
    arguments = ["--image", photo, "--source", "a", "--target", "b", "--target", "c", "--steps", 2]
    result = run("edit", kontext, *arguments, "--n-max", 1, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    pictures = json.loads(result.stdout)["pictures"]
    assert [each["prompt"] for each in pictures] == ["b", "c"]
    assert all((each["source"], each["n_max"], each["task"]) == ("a", 1, "edit") for each in pictures)


def test_references_may_be_many(kontext, photo, tmp_path):
    arguments = ["--reference", photo, "--reference", photo, "--size", "32x32", "--steps", 1]
    result = run("generate", kontext, "a", *arguments, "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert parameters(tmp_path / "a.png")[1]["reference"] == [photo_record(photo)] * 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "dev-like",
            ["--reference", "PHOTO"],
            "a dev bundle cannot do the task reference .*table of var",
        ),
        ("dev-like", ["--control", "PHOTO"], "cannot do the task control .*table of variants"),
        ("fill-like", [], "a fill bundle paints into a hole of a picture; give --image with --mask"),
        ("fill-like", ["--reference", "PHOTO"], "cannot do the task reference"),
        ("canny-like", [], "give it with --control or --canny"),
        ("dev-like", ["--mask", "PHOTO"], "a mask is given without a picture"),
        ("dev-like", ["--paste"], "give the mask with --mask"),
        ("dev-like", ["--strength", 0.5], "a strength is given without a picture"),
        ("dev-like", ["--image", "PHOTO", "--strength", 0], "strength 0.0 leaves none of 28 steps"),
        ("dev-like", ["--negative", "b"], "give both"),
        ("dev-like", ["--true-cfg", 3], "give both"),
        ("dev-like", ["--negative", "", "--true-cfg", "nan"], "true_cfg nan is not a finite number"),
        ("dev-like", ["--outpaint", "1,1,1,1"], "--outpaint extends a picture"),
        ("dev-like", ["--image", "nowhere.png"], "no picture nowhere.png"),
        ("dev-like", ["--tile", 100], "tile 100 is not possible"),
    ],
)
def test_what_a_bundle_cannot_do_is_one_line(bundle, photo, tmp_path, name, arguments, message):
    given = [photo if each == "PHOTO" else each for each in arguments]
    line = fault(run("generate", bundle(name), "a", *given, "-o", tmp_path / "a.png"))
    assert re.search(message, line)
    assert list(tmp_path.iterdir()) == []


def test_jobs_go_on_where_they_stopped(tiny, tmp_path):
    jobs, results = tmp_path / "many.jsonl", tmp_path / "many.results.jsonl"
    lines = ['{"prompt": "a", "seed": 1}', '{"prompt": "b", "sed": 1}', '{"prompt": "c", "output": "c.png"}']
    jobs.write_text("\n".join(lines))
    result = run("generate", tiny, "--jobs", jobs)
    assert result.exit_code == 1
    assert result.stdout == f"2 painted, 0 kept, 1 failed; results in {results}\n"
    assert "1 of 3 jobs failed" in fault(result)
    first, second, third = map(json.loads, results.read_text().splitlines())
    assert (first["ok"], second["ok"], third["path"]) == (True, False, "c.png")
    assert "unknown field 'sed'" in second["error"]
    place = tmp_path / first["path"]
    assert re.fullmatch(r"many-[0-9a-f]{12}\.png", place.name)
    painted = place.stat().st_mtime_ns
    lines[1] = '{"prompt": "b", "image": "no.png", "source": "x", "target": "y"}'
    jobs.write_text("\n".join([*lines, '{"source": "x"}', '{"prompt": "d", "n_min": 3}']))
    again = run("generate", tiny, "--jobs", jobs, "--json")
    assert json.loads(again.stdout.splitlines()[0]) == {
        "results": str(results),
        "painted": 0,
        "kept": 2,
        "failed": 3,
    }
    errors = [json.loads(line).get("error") for line in results.read_text().splitlines()[3:]]
    assert "a job with 'source' has no field 'prompt'" in errors[0]
    assert "the field 'image' is missing" in errors[1]
    assert "has no field 'n_min'" in errors[2]
    assert place.stat().st_mtime_ns == painted


def test_jobs_stand_in_their_file_alone(tiny, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    for arguments in (["a"], ["--seed", 3]):
        result = run("generate", tiny, *arguments, "--jobs", tmp_path / "a.jsonl")
        assert result.exit_code == 2
        assert "in the file of --jobs" in result.stderr
    assert "Missing argument" in run("generate", tiny).stderr
