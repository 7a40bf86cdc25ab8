"""Runs of a file of jobs: what counts as done, what is never lost, and what is painted together."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from given import EARLIER
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flux_trt.runtime import recorded
from flux_trt.runtime.cli import main
from flux_trt.runtime.errors import PaintError
from flux_trt.runtime.pipeline import Pipeline

CPU = ("--backend", "onnxruntime", "--device", "cpu")


def run(*arguments):
    return CliRunner().invoke(main, ["generate", *map(str, arguments), *CPU])


def written(folder, *jobs):
    path = folder / "j.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in jobs))
    return path


def counted(result):
    return [int(part.split()[0]) for part in result.stdout.split(";")[0].split(",")]


def results(path):
    lines = path.with_name("j.results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).copy()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_line_at_the_top_overwrites_nothing(tiny, tmp_path):
    path = written(tmp_path, {"prompt": "a"}, {"prompt": "red"})
    assert counted(run(tiny, "--jobs", path)) == [2, 0, 0]
    before = {each["path"]: (tmp_path / each["path"]).read_bytes() for each in results(path)}
    written(tmp_path, {"prompt": "blue"}, {"prompt": "a"}, {"prompt": "red"})
    assert counted(run(tiny, "--jobs", path)) == [1, 2, 0]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    places = {each["path"]: recorded(each["path"]).parameters["prompt"] for each in results(path)}
    assert sorted(places.values()) == ["a", "blue", "red"]


@pytest.fixture
def done(bundle, tmp_path):
    """A job with a picture and its output, painted."""
    root = bundle("dev-like")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save("photo.png")
    path = written(
        tmp_path, {"prompt": "a", "image": "photo.png", "strength": 0.5, "steps": 4, "output": "o.png"}
    )
    assert counted(run(root, "--jobs", path)) == [1, 0, 0]
    again = run(root, "--jobs", path)
    assert (counted(again), again.stderr) == ([0, 1, 0], "")
    return root, path


@pytest.mark.parametrize("content", [b"", b"half", None, b"text"])
def test_an_output_that_is_not_whole_is_painted_again(done, content):
    root, path = done
    whole = (path.parent / "o.png").read_bytes()
    if content is None:
        (path.parent / "o.png").unlink()
    else:
        (path.parent / "o.png").write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    found = run(root, "--jobs", path)
    assert counted(found) == [1, 0, 0]
    assert (path.parent / "o.png").read_bytes() == whole
    if content is not None:
        assert found.stderr.startswith("line 1: painted again, since ")


def test_a_changed_input_is_painted_again(done):
    root, path = done
    before = pixels("o.png")
    Image.new("RGB", (32, 32), "red").save("photo.png")
    found = run(root, "--jobs", path)
    assert counted(found) == [1, 0, 0]
    assert "it differs in image" in found.stderr
    assert not np.array_equal(pixels("o.png"), before)


def test_an_input_that_is_only_saved_again_is_kept(done):
    root, path = done
    with Image.open("photo.png") as image:
        image.load()
        image.save("photo.png", compress_level=1)
    assert counted(run(root, "--jobs", path)) == [0, 1, 0]


def test_another_bundle_paints_again(done, bundle):
    _, path = done
    found = run(bundle("kontext-like"), "--jobs", path)
    assert counted(found) == [1, 0, 0]
    assert "it differs in content, guidance, variant" in found.stderr


def test_another_tile_paints_again(done, bundle):
    root, path = done
    written(path.parent, {"prompt": "a", "size": "96x96", "steps": 2, "output": "p.png"})
    assert counted(run(root, "--jobs", path)) == [1, 0, 0]
    found = run(root, "--jobs", path, "--tile", 64)
    assert (counted(found), "it differs in tile" in found.stderr) == ([1, 0, 0], True)


def test_a_picture_whose_result_was_lost_is_kept_and_noted(done):
    root, path = done
    noted = results(path)
    path.with_name("j.results.jsonl").unlink()
    assert counted(run(root, "--jobs", path)) == [0, 1, 0]
    (found,) = results(path)
    assert (found["job"], found["path"], found["ok"]) == (noted[0]["job"], "o.png", True)


def test_two_jobs_with_one_output_are_refused_before_any_work(tiny, tmp_path):
    path = written(tmp_path, {"prompt": "a", "output": "o.png"}, {"prompt": "red", "output": "o.png"})
    found = run(tiny, "--jobs", path)
    assert found.exit_code == 1
    assert "Error: lines 1 and 2 both write" in found.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["j.jsonl"]


def test_somebody_elses_file_is_not_replaced(tiny, tmp_path):
    path = written(tmp_path, {"prompt": "red"}, {"prompt": "a", "output": "o.png"})
    (tmp_path / "o.png").write_bytes(b"mine")
    found = run(tiny, "--jobs", path)
    assert (found.exit_code, (tmp_path / "o.png").read_bytes()) == (1, b"mine")
    assert "line 2: " in found.stderr and "o.png is there and is another file" in found.stderr
    assert results(path) == []
    assert counted(run(tiny, "--jobs", path, "--force")) == [2, 0, 0]


def test_an_output_of_a_line_that_was_edited_is_not_replaced(tiny, tmp_path):
    path = written(tmp_path, {"prompt": "a", "output": "o.png"})
    assert counted(run(tiny, "--jobs", path)) == [1, 0, 0]
    written(tmp_path, {"prompt": "red", "output": "o.png"})
    assert "it differs in prompt" in run(tiny, "--jobs", path).stderr
    written(tmp_path, {"output": "o.png", "prompt": "a"})
    assert counted(run(tiny, "--jobs", path)) == [0, 1, 0], "the same, written otherwise"


def test_results_of_an_earlier_version(tiny, bundle, tmp_path):
    """Their pictures lie at names of lines, with few parameters under the old key."""
    path = written(tmp_path, {"prompt": "a"}, {"prompt": "red"})
    assert counted(run(tiny, "--jobs", path)) == [2, 0, 0]
    noted = results(path)
    for number, each in enumerate(noted, 1):
        info = PngInfo()
        facts = {name: each["parameters"][name] for name in EARLIER} | ({"seed": 8} if number == 2 else {})
        info.add_text("parameters", json.dumps(facts))
        with Image.open(each["path"]) as image:
            image.save(f"j-{number}.png", pnginfo=info)
        (tmp_path / each["path"]).unlink()
    old = [{**each, "path": f"j-{number}.png"} for number, each in enumerate(noted, 1)]
    path.with_name("j.results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in old))
    found = run(tiny, "--jobs", path)
    assert counted(found) == [1, 1, 0]
    assert "line 2: painted again" in found.stderr and "it differs in seed" in found.stderr
    assert (tmp_path / "j-2.png").exists(), "the old one is not replaced"


BATCHED = [
    {"prompt": "a red circle", "seed": 1, "size": "32x48", "steps": 2},
    {"prompt": "b", "seed": 2, "size": "48x32", "steps": 2},
    {"prompt": "c", "seed": 3, "size": "32x48", "steps": 2},
    {"prompt": "d", "seed": 4, "size": "32x48", "steps": 3},
    {"prompt": "e", "image": "p.png", "steps": 2, "seed": 5},
    {"prompt": "f", "image": "q.png", "steps": 2, "seed": 6},
    {"prompt": "g", "image": "q.png", "mask": "m.png", "steps": 2},
    {"prompt": "h", "image": "p.png", "mask": "m.png", "steps": 2, "seed": 9},
    {"prompt": "i", "negative": "x", "true_cfg": 2, "size": "32x48", "steps": 2},
    {"prompt": "j", "negative": "y", "true_cfg": 2, "size": "32x48", "steps": 2},
    {"image": "p.png", "source": "k", "target": "l", "steps": 3},
    {"image": "q.png", "source": "m", "target": "n", "steps": 3},
    {"prompt": "o", "seed": 7, "size": "32x48", "steps": 2},
]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_jobs_painted_together_are_those_of_each_alone(bundle, tmp_path, monkeypatch, backend):
    rng = np.random.default_rng(0)
    for name in ("p.png", "q.png"):
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)).save(name)
    Image.fromarray(np.repeat([[0, 255]], 24, axis=1).repeat(32, 0).astype(np.uint8)).save("m.png")
    sizes, paint = [], Pipeline.paint

    def counting(self, request, *more):
        sizes.append(len(request))
        return paint(self, request, *more)

    monkeypatch.setattr(Pipeline, "paint", counting)
    found = {}
    for batch in (1, 3):
        folder = tmp_path / str(batch)
        folder.mkdir()
        for name in ("p.png", "q.png", "m.png"):
            shutil.copy(name, folder)
        path = written(folder, *({**each, "output": f"{k}.png"} for k, each in enumerate(BATCHED)))
        result = CliRunner().invoke(
            main,
            [
                "generate",
                str(bundle("dev-like")),
                "--jobs",
                str(path),
                "--batch",
                str(batch),
                "--backend",
                backend,
            ],
        )
        assert counted(result) == [len(BATCHED), 0, 0], result.output
        found[batch] = folder
    assert sorted(sizes) == sorted([1] * len(BATCHED) + [3, 1, 1, 2, 2, 2, 2])
    for k in range(len(BATCHED)):
        np.testing.assert_array_equal(pixels(found[3] / f"{k}.png"), pixels(found[1] / f"{k}.png"))
        one, other = (dict(recorded(found[n] / f"{k}.png").parameters) for n in (1, 3))
        for name in ("image", "mask"):
            for each in (one, other):
                each.pop(name, {})
        assert one == other
    assert sorted(each["line"] for each in results(found[3] / "j.jsonl")) == list(range(1, 14))


def test_one_that_fails_in_company_leaves_the_others(tiny, tmp_path, monkeypatch):
    paint = Pipeline.paint

    def failing(self, request, *more):
        if "red" in request.prompts:
            raise PaintError("not finite; no")
        return paint(self, request, *more)

    monkeypatch.setattr(Pipeline, "paint", failing)
    path = written(tmp_path, {"prompt": "a"}, {"prompt": "red"}, {"prompt": "blue"})
    found = run(tiny, "--jobs", path, "--batch", 3)
    assert (found.exit_code, counted(found)) == (1, [2, 0, 1])
    assert {each["line"]: each["ok"] for each in results(path)} == {1: True, 2: False, 3: True}


def test_two_runs_at_once(tiny, tmp_path):
    """One works, the other is refused in one line; nothing is painted twice or lost."""
    path = written(tmp_path, *({"prompt": "a red circle", "seed": k, "steps": 40} for k in range(30)))
    command = [sys.executable, "-m", "flux_trt.runtime.cli", "generate", tiny, "--jobs", path, *CPU]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [(*each.communicate(), each.returncode) for each in both]
    refused = [error for _, error, code in said if code == 1]
    assert all("another run is at work on" in each and each.count("\n") == 1 for each in refused)
    assert len(refused) <= 1
    assert len(results(path)) == 30
    assert {recorded(each["path"]).parameters["seed"] for each in results(path)} == set(range(30))


def test_nothing_is_loaded_when_all_is_done(tiny, tmp_path, monkeypatch):
    path = written(tmp_path, {"prompt": "a"})
    assert counted(run(tiny, "--jobs", path)) == [1, 0, 0]
    monkeypatch.setattr("flux_trt.runtime.session.connect", lambda *all, **more: 1 / 0)
    assert counted(run(tiny, "--jobs", path)) == [0, 1, 0]
