"""Every picture task through TensorRT's backend on the simulated GPU: the pictures of onnxruntime."""

import shutil

import pytest
import simulator_bundle
from PIL import Image, ImageDraw

SIZE = (32, 48)
PROMPTS = ["a red circle", "a blue square at the left"]


def scene(size=SIZE):
    image = Image.new("RGB", size, (240, 235, 220))
    ImageDraw.Draw(image).ellipse((6, 4, 22, 20), fill="red")
    return image


def hole():
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).rectangle((3, 10, 25, 40), fill=255)
    return mask


SHARED = {"size": SIZE, "steps": 4, "guidance": 2.0, "batch": 2}  # of dev-like; schnell-like has no guidance
TASKS = {
    "guided": {**SHARED, "negative": "green", "true_cfg": 2.5},
    "image": {**SHARED, "image": scene(), "strength": 0.6},
    "inpaint": {**SHARED, "image": scene(), "mask": hole(), "strength": 1.0, "paste": True},
    "guided inpaint": {**SHARED, "image": scene(), "mask": hole(), "negative": "", "true_cfg": 3.0},
}
SECOND = {
    f"ab2 {name}": {**asked, "solver": "ab2"}
    for name, asked in {"plain": {**SHARED, "steps": 5}, **TASKS}.items()
}
EDITS = {
    "edit": {"size": SIZE, "steps": 5, "n_max": 4, "batch": 2},
    "edit with plain steps": {"size": SIZE, "steps": 4, "n_max": 3, "n_min": 2, "n_avg": 2, "batch": 2},
    "edit of several noises": {"size": SIZE, "steps": 3, "n_max": 2, "n_avg": 3, "batch": 1},
}


@pytest.fixture(scope="module")
def engines(bundle, tmp_path_factory):
    def get(name):
        root = tmp_path_factory.mktemp(name) / "bundle"
        shutil.copytree(bundle(name), root)
        profile = {
            **simulator_bundle.WIDE,
            "text": (1, 64, 512),
            "tokens": (1, 16, 64),
            "sequence": (1, 80, 1024),
        }
        simulator_bundle.add_engines(root, profiles=[profile])
        return root

    made = {}
    return lambda name: made.setdefault(name, made.get(name) or get(name))


def agree(engines, name, asked, memory="resident"):
    def paint(pipeline, seed):
        if "n_max" in asked:
            return pipeline.edit(scene(), source=PROMPTS[0], target=PROMPTS, seed=seed, **asked)
        return pipeline.generate(PROMPTS, seed=seed, **asked)

    return simulator_bundle.agree(engines(name), paint, memory)


@pytest.mark.parametrize("task", [*TASKS, *SECOND, *EDITS])
def test_tasks_are_painted_alike(engines, task):
    cuda = agree(engines, "schnell-like" if "edit" in task else "dev-like", (TASKS | SECOND | EDITS)[task])
    assert cuda.calls["cudaGraphLaunch"] >= 2, "the loop was recorded"


@pytest.mark.parametrize("task", ["guided inpaint", "edit with plain steps"])
def test_in_sequential_mode_too(engines, task):
    agree(engines, "schnell-like" if "edit" in task else "dev-like", (TASKS | EDITS)[task], "sequential")


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("batch", [1, 2])
def test_references_ride_along(engines, batch, solver):
    asked = {
        **SHARED,
        "solver": solver,
        "batch": batch,
        "reference": [scene(), scene((32, 32))],
        "auto_resize": False,
    }
    agree(engines, "kontext-like", asked)


def test_fill_and_control(engines):
    agree(engines, "fill-like", {**SHARED, "image": scene(), "mask": hole()})
    agree(engines, "canny-like", {**SHARED, "control": scene()})
