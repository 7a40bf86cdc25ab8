"""Painted again from its file: every task and format, bit for bit; and what is said where it cannot be."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from given import EARLIER
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flux_trt.runtime import Pipeline, recorded
from flux_trt.runtime.cli import main
from flux_trt.runtime.errors import RequestError

CPU = ["--backend", "onnxruntime", "--device", "cpu"]
TASKS = {
    "generate": ("dev-like", ["generate", "a", "--size", "48x32", "--guidance", "2"]),
    "guided": ("dev-like", ["generate", "a", "--negative", "b", "--true-cfg", "2", "--size", "32x48"]),
    "image": ("dev-like", ["generate", "a", "--image", "photo.png", "--strength", "0.5"]),
    "inpaint": ("dev-like", ["generate", "a", "--image", "photo.png", "--mask", "mask.png", "--paste"]),
    "reference": ("kontext-like", ["generate", "a", "--reference", "photo.png", "--reference", "other.png"]),
    "own sizes": ("kontext-like", ["generate", "a", "--reference", "photo.png", "--no-auto-resize"]),
    "fill": ("fill-like", ["generate", "a", "--image", "photo.png", "--mask", "mask.png"]),
    "outpaint": (
        "fill-like",
        ["generate", "a", "--image", "photo.png", "--outpaint", "16,0,0,16", "--paste"],
    ),
    "crop": (
        "dev-like",
        [
            "generate",
            "a",
            "--image",
            "photo.png",
            "--mask",
            "mask.png",
            "--mask-crop",
            "2",
            "--mask-blur",
            "1",
        ],
    ),
    "soft": (
        "kontext-like",
        ["generate", "a", "--image", "photo.png", "--mask", "mask.png", "--mask-blur", "2", "--paste"],
    ),
    "reference and mask": (
        "kontext-like",
        ["generate", "a", "--image", "photo.png", "--mask", "mask.png", "--reference", "photo.png"],
    ),
    "control and mask": (
        "canny-like",
        ["generate", "a", "--image", "photo.png", "--mask", "mask.png", "--control", "other.png"],
    ),
    "schedule": ("dev-like", ["generate", "a", "--shift", "2", "--size", "32x48"]),
    "control": ("canny-like", ["generate", "a", "--control", "photo.png"]),
    "canny": ("canny-like", ["generate", "a", "--canny", "photo.png"]),
    "no guidance": ("schnell-like", ["generate", 'caf\u00e9,\n "x"', "--size", "32x32"]),
    "edit": ("dev-like", ["edit", "--image", "photo.png", "--source", "a", "--target", "b", "--n-avg", "2"]),
    "tiles": ("dev-like", ["generate", "a", "--size", "96x64", "--tile", "64"]),
}


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def line(result):
    """The one line of an expected fault."""
    assert result.exit_code == 1, result.output
    return result.stderr.splitlines()[-1]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).copy()


@pytest.fixture
def given(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("photo.png", "other.png"):
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)).save(tmp_path / name)
    mask = Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 24, 32))
    mask.save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def first(bundle, given):
    """Paint a task, and give its bundle and its command."""

    def paint(task, *names):
        name, (verb, *words) = TASKS[task]
        steps = ["--steps", 3, "--seed", 11]
        for each in names:
            found = run(verb, bundle(name), *words, *steps, *CPU, "-o", each)
            assert found.exit_code == 0, found.output
        return bundle(name), verb

    return paint


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_painted_again_bit_for_bit(first, given, task):
    root, verb = first(task, "a.png", "a.jpg", "a.webp")
    for name in ("a.png", "a.jpg", "a.webp"):
        found = run(verb, root, "--from", name, "-o", "again.png", "--force")
        assert found.exit_code == 0, found.output
        assert "was painted" not in found.stderr, "nothing is doubted"
        np.testing.assert_array_equal(pixels("again.png"), pixels("a.png"))
    with Image.open("again.png") as one, Image.open("a.png") as other:
        assert json.loads(one.info["flux_trt"]) == json.loads(other.info["flux_trt"])
    kept = recorded("a.png")
    with Pipeline.load(root, "onnxruntime", "cpu", tile=kept.machine["tile"]) as pipeline:
        (painted,) = pipeline.paint(kept.request(pipeline.bundle.manifest))
        np.testing.assert_array_equal(np.asarray(painted.image), pixels("a.png"))
        (image,) = getattr(pipeline, kept.command)(**kept.arguments())
        np.testing.assert_array_equal(np.asarray(image), pixels("a.png"))
        pipeline.save(image, "saved.png")
        assert recorded("saved.png").parameters == kept.parameters


def test_pictures_are_found_beside_the_picture_or_given_again(first, given):
    root, _ = first("inpaint", "a.png")
    for name in ("a.png", "photo.png", "mask.png"):
        (given / "elsewhere").mkdir(exist_ok=True)
        (given / name).rename(given / "elsewhere" / name)
    assert run("generate", root, "--from", "elsewhere/a.png", "-o", "b.png").exit_code == 0
    (given / "elsewhere" / "mask.png").rename(given / "m.png")
    found = line(run("generate", root, "--from", "elsewhere/a.png", "-o", "c.png"))
    assert found == (
        "Error: mask.png is not there, and elsewhere/a.png was painted from it; give it with --mask"
    )
    again = run("generate", root, "--from", "elsewhere/a.png", "-o", "c.png", "--mask", "m.png")
    assert (again.exit_code, again.stderr) == (0, "")
    np.testing.assert_array_equal(pixels("c.png"), pixels("b.png"))


@pytest.mark.parametrize(
    ("task", "name", "option"), [("inpaint", "mask.png", "mask"), ("edit", "photo.png", "image")]
)
def test_a_changed_picture_is_refused(first, given, task, name, option):
    root, verb = first(task, "a.png")
    with Image.open(given / name) as image:
        changed = image.copy()
    changed.putpixel((0, 0), 1 if image.mode == "L" else (1, 2, 3))
    changed.save(given / name)
    found = line(run(verb, root, "--from", "a.png", "-o", "b.png"))
    assert f"{name} is not the picture that a.png was painted from (its pixels differ)" in found
    assert f"--{option}" in found
    with pytest.raises(RequestError, match="its pixels differ"):
        recorded("a.png").arguments()
    assert not (given / "b.png").exists()


def test_a_record_opens_nothing_but_pictures(first, given):
    root, _ = first("inpaint", "a.png")
    facts = json.loads(json.dumps(recorded("a.png").parameters))
    for path in ("/etc/passwd", "secret", "../x/id_rsa.pem"):
        info = PngInfo()
        facts["image"]["path"] = path
        info.add_text("flux_trt", json.dumps(facts))
        with Image.open("a.png") as image:
            image.save("b.png", pnginfo=info)
        found = line(run("generate", root, "--from", "b.png", "-o", "c.png"))
        assert f"b.png names {path}, which has no picture's ending, and it is not opened; " in found
        assert "give the picture with --image" in found


def test_what_is_said_beside_it_takes_precedence_and_is_told(first, given):
    root, _ = first("image", "a.png")
    found = run("generate", root, "--from", "a.png", "--strength", 0.7, "--seed", 11, "-n", 2, "-o", "b.png")
    assert (found.exit_code, found.stderr) == (0, "--strength is 0.7; a.png has 0.5\n")
    told = [recorded(f"b-{k}.png").parameters for k in range(2)]
    assert [(each["seed"], each["strength"]) for each in told] == [(11, 0.7), (12, 0.7)]
    found = run("generate", root, "b", "--from", "a.png", "-o", "c.png")
    assert "the prompt is 'b'; a.png has 'a'" in found.stderr
    assert recorded("c.png").parameters["prompt"] == "b"


def test_the_command_is_named(first, given):
    root, _ = first("edit", "a.png")
    assert line(run("generate", root, "--from", "a.png")) == (
        "Error: a.png was painted by flux-run edit; use flux-run edit --from"
    )
    root, _ = first("generate", "b.png")
    assert "use flux-run generate --from" in line(run("edit", root, "--from", "b.png"))


def test_another_bundle_and_another_backend_are_warned_of(first, bundle, given):
    first("generate", "a.png")
    found = run("generate", bundle("kontext-like"), "--from", "a.png", "-o", "b.png", "--backend", "openvino")
    assert found.exit_code == 0, found.output
    one, other = found.stderr.splitlines()
    assert one.startswith("warning: a.png was painted with another bundle (dev, fp32, ")
    assert other == "warning: a.png was painted on onnxruntime, not openvino; values may differ by a little"


def test_a_picture_of_an_earlier_version(first, bundle, given):
    root, _ = first("generate", "a.png")
    facts = dict(recorded("a.png").parameters)
    info = PngInfo()
    info.add_text("parameters", json.dumps({name: facts[name] for name in EARLIER}))
    with Image.open("a.png") as image:
        image.save("old.png", pnginfo=info)
    found = run("generate", root, "--from", "old.png", "-o", "b.png", *CPU)
    assert found.exit_code == 0, found.output
    assert found.stderr.startswith(
        "warning: old.png is of an earlier version, which did not record everything"
    )
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))


def test_files_that_say_nothing_are_one_line(first, given):
    root, _ = first("generate", "a.png")
    assert "does not say how it was painted" in line(run("generate", root, "--from", "photo.png"))
    assert "no picture none.png" in line(run("generate", root, "--from", "none.png"))
    (given / "text.png").write_text("text")
    assert "cannot read the picture text.png" in line(run("generate", root, "--from", "text.png"))
