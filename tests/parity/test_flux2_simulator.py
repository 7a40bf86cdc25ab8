"""FLUX.2 through TensorRT's backend on the simulated GPU: the pictures that onnxruntime paints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulator_bundle
from PIL import Image
from simulator_cuda import CudaSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.tasks.request import Request

SIZE = (48, 64)
PROMPTS = ["a red circle", "a blue square at the left"]
PROFILE = {
    **simulator_bundle.WIDE,
    "text": (1, 64, 512),
    "tokens": (1, 16, 128),
    "sequence": (1, 80, 1024),
    "reference": (0, 16, 128),
}


def scene(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 3 % 256, y * 2 % 256, (x * y) % 256], -1).astype(np.uint8))


def hole() -> Image.Image:
    mask = Image.new("L", SIZE)
    mask.paste(255, (11, 5, 40, 50))
    return mask


ONE, TWO = [scene(64, 70)], [scene(64, 70), scene(80, 64)]
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("distilled", {}),
    "references": ("distilled", {"reference": TWO}),
    "guided": ("base", {"guidance": 2.5, "reference": ONE}),
    "inpaint": ("base", {"guidance": 2.0, "image": scene(*SIZE), "mask": hole(), "strength": 0.9}),
    "image": ("distilled", {"image": scene(*SIZE), "strength": 0.7}),
    "image kept": ("kv", {"image": scene(*SIZE), "strength": 0.7, "reference": ONE}),
    "dev": ("dev", {"guidance": 3.0, "reference": ONE}),
    "no references kept": ("kv", {}),
    "references kept": ("kv", {"reference": TWO}),
    "references kept in 16 bits": ("kv fp16", {"reference": TWO}),
    "references kept, guided": ("kv", {"reference": ONE, "negative": "", "true_cfg": 2.0}),
    "inpaint kept": ("kv", {"image": scene(*SIZE), "mask": hole(), "strength": 0.9, "reference": ONE}),
}


@pytest.fixture(scope="module")
def engines(
    flux2_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = shutil.copytree(
                flux2_bundle(*kind.split()), tmp_path_factory.mktemp("engines") / "bundle"
            )
            simulator_bundle.add_engines(made[kind], profiles=[PROFILE])
        return made[kind]

    return get


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("memory", ["resident", "sequential"])
def test_the_simulated_gpu_paints_the_same_bytes(
    engines: Callable[[str], Path], name: str, memory: str
) -> None:
    """Three runs: step by step, recorded, and launched again."""
    kind, more = ASKED[name]
    asked = {"size": SIZE, "steps": 3, "batch": 2, **more}
    cuda = simulator_bundle.agree(
        engines(kind), lambda pipeline, seed: pipeline.generate(PROMPTS, seed=seed, **asked), memory
    )
    assert memory == "sequential" or cuda.calls["cudaGraphLaunch"] >= 1, "the loop was recorded"


@pytest.mark.parametrize("kind", ["dev", "base", "kv"])
def test_flowedit_on_the_simulated_gpu(engines: Callable[[str], Path], kind: str) -> None:
    """With plain steps at the end, which take the second half of the conditions alone."""
    asked = {"size": SIZE, "steps": 4, "n_max": 3, "n_min": 1, "batch": 2, "source": "a", "target": PROMPTS}
    simulator_bundle.agree(
        engines(kind), lambda pipeline, seed: pipeline.edit(scene(*SIZE), seed=seed, **asked)
    )


def test_keys_are_made_once_for_a_set_of_pictures(engines: Callable[[str], Path]) -> None:
    """Four batches of one picture see the same references; interleaved requests do not mix theirs up."""
    root, cuda = engines("kv"), CudaSimulator()
    asked = {"size": SIZE, "steps": 2}
    with simulator_bundle.pipeline(root, cuda) as pipeline:
        runs = list[str]()
        graph = pipeline._graphs["references"]
        run = graph.run
        graph.run = lambda *given: (runs.append("references"), run(*given))[1]
        four = pipeline.generate(PROMPTS[0], count=4, seed=1, reference=TWO, **asked)
        assert len(runs) == 1
        requests = [
            Request.of(pipeline.bundle.manifest, PROMPTS[0], count=2, seed=1, reference=each, **asked)
            for each in (ONE, [ONE[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
        ]
        apart = [[np.asarray(one.image) for one in pipeline.paint(request)] for request in requests]
        mixed = zip(*(pipeline.paint(request) for request in requests), strict=True)
        turns = [[np.asarray(one.image) for one in each] for each in zip(*mixed, strict=True)]
        np.testing.assert_array_equal(apart, turns)
    with Pipeline.load(root, "onnxruntime", "cpu") as onnxruntime:
        singly = [onnxruntime.generate(PROMPTS[0], seed=1 + k, reference=TWO, **asked)[0] for k in range(4)]
    np.testing.assert_array_equal([np.asarray(each) for each in four], [np.asarray(each) for each in singly])


def test_other_references_are_seen_by_a_loop_that_is_recorded(engines: Callable[[str], Path]) -> None:
    """Of the same size, so that shapes and addresses stay: the keys must be those of the new pictures."""
    root, cuda = engines("kv"), CudaSimulator()
    asked = {"size": SIZE, "steps": 3, "seed": 5}
    pictures = [scene(64, 64), scene(64, 64).transpose(Image.Transpose.ROTATE_90)]
    with (
        simulator_bundle.pipeline(root, cuda) as pipeline,
        Pipeline.load(root, "onnxruntime", "cpu") as onnxruntime,
    ):
        found = []
        for picture in (*pictures, *pictures):
            (one,), (other,) = (
                each.generate(PROMPTS[0], reference=picture, **asked) for each in (pipeline, onnxruntime)
            )
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
            found.append(np.asarray(one))
        assert (found[0] != found[1]).any()
        assert (found[0] == found[2]).all()


@pytest.mark.parametrize("name", ["text", "dev", "no references kept", "references kept", "inpaint kept"])
def test_openvino_paints_them_too(flux2_bundle: Callable[..., Path], name: str) -> None:
    """A conditioner with an output that depends on nothing, and keys of no tokens, among others."""
    kind, more = ASKED[name]
    found = []
    for backend in ("onnxruntime", "openvino"):
        with Pipeline.load(flux2_bundle(kind), backend) as pipeline:
            painted = pipeline.generate(PROMPTS, size=SIZE, steps=3, seed=1, batch=2, **more)
        found.append(np.stack([np.asarray(image) for image in painted]).astype(int))
    assert (np.abs(found[0] - found[1]) <= 1).mean() >= 0.999
