"""What the pages show is run as it stands: every command and every Python block, or a reason why not.

flux-nano and its relatives stand for the large models, made-up pictures for the reader's own, and 64x64 for
larger sizes. What needs something that is not here is in `REASONS`, with the test that does it instead.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import PAGES, group, named, shown
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
OWN = r"black-forest-labs/|path/to/|CHECKPOINT|\w\.gguf|^flux-export \w+ [\w-]+\.safetensors|--lora"
REASONS = {
    r"--for trtexec.*--sm|--sm .*--for trtexec": None,
    r"--backend onnxruntime --for triton": None,
    OWN: "a checkpoint of gigabytes, or a file of the reader's; tests/unit/test_layouts.py",
    r"--backend tensorrt|^make gpu|--engines ": "a GPU, or minutes of TensorRT; tests/gpu, tests/engines",
    r"^(pip|python3 -m venv|make) ": "installs; tests/project/test_packaging.py",
    r"--ray\b": "starts Ray; tests/unit/test_ray_serving.py, tests/slow/test_ray.py",
    r"^flux-serve|^curl": "a server that runs until it is stopped; tests/unit/test_serving_app.py",
    r"^flux-bench": "measures for minutes; tests/unit/test_bench_run.py",
    r"^flux-run generate (klein|flux2)": "a FLUX.2; tests/parity/test_flux2_pictures.py",
    r"^python -m nano\.|^cd ": "trains or judges for minutes to hours; tests/unit/test_nano_training.py",
    r'^(cat > |END$|\{")': "a file that the next command reads",
    r"from openai import": "a server; tests/unit/test_serving_app.py",
    r"set_loras": "a LoRA of the reader's; tests/unit/test_lora_painting.py",
}
"""By what a command or block holds; None: it is run. The first that fits counts."""
STAND_INS = {
    "flux-nano": ("dev", "kontext", "out/flux-nano"),
    "flux-nano-fill": ("fill", "out/flux-nano-fill"),
    "flux-nano-canny": ("canny", "depth", "out/flux-nano-canny"),
}
PICTURES = ("harbour.jpg", "render.png", "house.png", "beach.png", "cat.png", "photo.jpg", "depth.png")
MASKS = ("door.png", "hole.png")


def reason(text):
    """Why it is not run, or None."""
    return next((why for pattern, why in REASONS.items() if re.search(pattern, text, re.M)), None)


def blocks(page):
    return re.findall(r"```(?:python|py)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def runs(page):
    """What of a page is run, in its order."""
    lines = [line for line in shown(page.read_text(encoding="utf-8")) if line and not line.startswith("#")]
    return [line for line in lines if not reason(line)]


@pytest.fixture(scope="module")
def place(bundle, tmp_path_factory):
    """A folder as the pages suppose it."""
    here = tmp_path_factory.mktemp("pages")
    for name, places in STAND_INS.items():
        for each in places:
            (here / each).parent.mkdir(exist_ok=True)
            if each.startswith("out/"):
                shutil.copytree(bundle(name), here / each)
            else:
                (here / each).symlink_to(bundle(name))
    (here / "examples").symlink_to(ROOT / "examples")
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 44, 44), "red")
    for each in PICTURES:
        picture.save(here / each)
    hole = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(hole).rectangle((16, 16, 48, 48), 255)
    for each in MASKS:
        hole.save(here / each)
    (here / "prompts.txt").write_text("a red circle\na blue square\n")
    (here / "pictures.jsonl").write_text(json.dumps({"prompt": "a red circle", "size": "64x64"}) + "\n")
    return here


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=named)
def test_the_commands_of_a_page_run(place, monkeypatch, page):
    monkeypatch.chdir(place)
    for line in runs(page):
        text, _, _ = line.partition(" 2> ")
        given, _, last = text.rpartition(" | ")
        words = shlex.split(re.sub(r"--size \d{3,}x\d{3,}", "--size 64x64", last), comments=True)
        assert words[0] in ("flux-run", "flux-export"), f"{line}: run it, or give the reason in REASONS"
        if words[0] == "flux-run":
            words += ["--force"]
            if "--from" in words and "circle.png" in words:
                first = ["generate", "dev", "a red circle", "--steps", "2", "-o", "circle.png", "--force"]
                assert CliRunner().invoke(group("flux-run"), first).exit_code == 0
        told = (place / given.split()[1]).read_text() if given.startswith("cat ") else None
        found = CliRunner().invoke(group(words[0]), words[1:], input=told, catch_exceptions=False)
        assert found.exit_code == 0, f"{line}: {found.output[-500:]}"


def python_blocks():
    for page in PAGES:
        for number, block in enumerate(blocks(page)):
            if not reason(block):
                yield pytest.param(page, block, id=f"{named(page)} {number}")


@pytest.mark.parametrize(("page", "block"), list(python_blocks()))
def test_the_python_of_a_page_runs(place, tmp_path, monkeypatch, page, block):
    in_docs = page.parent in (ROOT, ROOT / "docs")
    monkeypatch.chdir(tmp_path if in_docs else ROOT)
    if in_docs:
        (tmp_path / "out").symlink_to(place / "out")
    with Image.open(place / "cat.png") as file:
        picture = file.copy()
    names = {"picture": picture, "pairs": [(picture, "a red circle in the center on a white background")]}
    exec(block, names)
    pictures = [each for each in names.values() if isinstance(each, Image.Image) and each is not picture]
    assert pictures or not in_docs
    assert all(each.size == (64, 64) for each in pictures)


def test_what_is_not_run_has_a_reason_that_holds():
    """No pattern is left over, and the tests that are named are there."""
    everything = [line for page in PAGES for line in shown(page.read_text(encoding="utf-8")) if line]
    everything += [block for page in PAGES for block in blocks(page)]
    for pattern, why in REASONS.items():
        assert any(re.search(pattern, each, re.M) for each in everything), pattern
        for path in re.findall(r"tests/[\w/.]+\w", why or ""):
            assert (ROOT / path).exists(), path
    assert len([line for page in PAGES for line in runs(page)]) >= 30


def test_the_tutorials_request_is_one_that_the_server_takes():
    from flux_trt.serving.fields import Fields

    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"-d '(\{.*?\})'", text)
    assert set(json.loads(body)) <= set(Fields.model_fields)
    Fields.model_validate(json.loads(body))
