"""Pictures painted with LoRAs at run time: those of the merged bundle; and without, those of before."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loras
import numpy as np
import pytest
import simulator_bundle
from PIL import Image
from simulator_cuda import CudaSimulator

from flux_trt.exporter.build import build
from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle.adapters import Branch
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.lora.chosen import chosen
from flux_trt.runtime.stepwise import Stepwise
from flux_trt.runtime.tasks.request import Request

SIZE, STEPS = (64, 64), 3
ASKED: dict[str, Any] = {"prompt": "a red circle", "size": SIZE, "steps": STEPS}
PROFILE = {
    "batch": (1, 1, 4),
    "text": (1, 64, 512),
    "tokens": (1, 16, 64),
    "sequence": (1, 80, 576),
    "steps": (1, 3, 28),
    "h": (1, 4, 8),
    "w": (1, 4, 8),
    "height": (16, 64, 128),
    "width": (16, 64, 128),
}
STRENGTH, OTHER = 0.75, -0.5


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), np.uint8))


def half() -> Image.Image:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    return Image.fromarray(mask)


TASKS: dict[str, Callable[[Pipeline], list[Image.Image]]] = {
    "plain": lambda pipeline: pipeline.generate(**ASKED),
    "guided": lambda pipeline: pipeline.generate(**ASKED, negative="blue", true_cfg=3.0),
    "image": lambda pipeline: pipeline.generate(**ASKED, image=picture(), strength=0.7),
    "masked": lambda pipeline: pipeline.generate(**ASKED, image=picture(), mask=half()),
    "batch": lambda pipeline: pipeline.generate(**ASKED, count=3, batch=2),
    "edit": lambda pipeline: pipeline.edit(picture(), source="a", target="b", steps=4, n_max=3, n_min=1),
}
"""Every way that the loop moves."""


@pytest.fixture(scope="module")
def source(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("dev-like")


@pytest.fixture(scope="module")
def files(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three LoRAs of one rank, in three forms; the last changes the denoiser alone."""
    folder = tmp_path_factory.mktemp("loras")
    made = [(form, loras.update(source, seed, 0.12)) for seed, form in enumerate(("kohya", "peft"), 11)]
    found = [
        loras.save(folder / f"{form}.safetensors", loras.FORMS[form](source, each)) for form, each in made
    ]
    own = {name: pair for name, pair in made[0][1].items() if ".attn." in name or ".ff" in name}
    return [*found, loras.save(folder / "denoiser.safetensors", loras.FORMS["peft"](source, own))]


@pytest.fixture(scope="module")
def merged(
    source: Path, bundle: Callable[..., Path], files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundle with two of them merged into its weights."""
    out = tmp_path_factory.mktemp("merged") / "bundle"
    shutil.copytree(bundle("dev-like"), out)
    build(str(source), out, lora=[f"{files[0]}:{STRENGTH}", f"{files[1]}:{OTHER}"])
    return out


@pytest.fixture(scope="module")
def engines(lora_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(lora_bundle, out)
    simulator_bundle.add_engines(out, [PROFILE])
    return out


@pytest.fixture
def on(lora_bundle: Path) -> Iterator[Callable[[str], Pipeline]]:
    """A pipeline on a backend, closed at the end."""
    opened = []

    def get(backend: str) -> Pipeline:
        opened.append(Pipeline.load(lora_bundle, backend, "cpu"))
        return opened[-1]

    yield get
    for each in opened:
        each.close()


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def far(one: np.ndarray, other: np.ndarray) -> float:
    """The share of values that are more than one level apart."""
    return float((np.abs(one - other) > 1).mean())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("task", TASKS)
def test_pictures_are_those_of_the_merged_bundle(
    backend: str, task: str, merged: Path, files: list[Path], on: Callable[[str], Pipeline]
) -> None:
    with Pipeline.load(merged, backend, "cpu") as pipeline:
        expected = pixels(TASKS[task](pipeline))
    pipeline = on(backend)
    plain = pixels(TASKS[task](pipeline))
    pipeline.set_loras([(files[0], STRENGTH), f"{files[1]}:{OTHER}"])
    found = pixels(TASKS[task](pipeline))
    assert far(found, expected) < 1e-3
    assert far(found, plain) > 0.2, "the LoRAs are not seen"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_lora_comes_and_goes_without_a_trace(
    backend: str, files: list[Path], on: Callable[[str], Pipeline], bundle: Callable[..., Path]
) -> None:
    with Pipeline.load(bundle("dev-like"), backend, "cpu") as without:
        plain = pixels(without.generate(**ASKED))
    pipeline = on(backend)
    found = []
    for each in ([], [files[0]], [], [files[1]], [files[0]], [files[2]], [files[0]], []):
        pipeline.set_loras(each)
        found.append(pixels(pipeline.generate(**ASKED)))
    nothing, one, again, other, back, third, last, end = found
    for each in (nothing, again, end):
        np.testing.assert_array_equal(each, plain)
    for each in (back, last):
        np.testing.assert_array_equal(each, one)
    assert far(one, plain) > 0.2
    assert far(other, one) > 0.2
    assert far(third, one) > 0.05


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("rank", [1, 5])
def test_branches_of_zeros_are_the_plain_graph_bit_by_bit(backend: str, rank: int, lora_bundle: Path) -> None:
    opened = Bundle.open(lora_bundle, check=False)
    takes, runs, draw = opened.manifest.adapters, connect(backend, "cpu"), np.random.default_rng(0)
    assert takes is not None
    dims = {"batch": 2, "tokens": 16, "text": 64, "sequence": 80, "steps": 2}
    for plain, branched in takes.stages.items():
        outputs = []
        given: dict[str, np.ndarray] = {}
        for name in (plain, branched):
            stage = opened.stage(name)
            for each in stage.inputs:
                shape = [dim if isinstance(dim, int) else dims.get(dim, rank) for dim in each.dims]
                zero = name == branched and each.name not in given
                given.setdefault(
                    each.name,
                    np.zeros(shape, np.float32) if zero else draw.standard_normal(shape, np.float32),
                )
            graph = runs.load(lora_bundle / stage.graph, name, stage)
            outputs.append({key: np.array(value.numpy()) for key, value in graph.run(dict(given)).items()})
            graph.close()
        for name, value in outputs[0].items():
            np.testing.assert_array_equal(outputs[1][name], value, err_msg=f"{branched} {name}")


def test_a_call_may_have_its_own_and_the_next_has_not(
    files: list[Path], on: Callable[[str], Pipeline]
) -> None:
    pipeline = on("onnxruntime")
    plain = pixels(pipeline.generate(**ASKED))
    pipeline.set_loras([files[0]])
    one = pixels(pipeline.generate(**ASKED))
    other = pixels(pipeline.generate(**ASKED, lora=[files[1]]))
    np.testing.assert_array_equal(pixels(pipeline.generate(**ASKED)), one)
    np.testing.assert_array_equal(pixels(pipeline.generate(**ASKED, lora=())), plain)
    pipeline.set_loras([f"{files[1]}:1"])
    np.testing.assert_array_equal(pixels(pipeline.generate(**ASKED)), other)
    pipeline.set_loras([(files[1], 0)])
    np.testing.assert_array_equal(pixels(pipeline.generate(**ASKED)), plain)


@pytest.mark.parametrize("memory", ["resident", "sequential"])
@pytest.mark.parametrize("task", TASKS)
def test_a_simulated_gpu_paints_the_same_in_every_mode(
    memory: str, task: str, engines: Path, files: list[Path], on: Callable[[str], Pipeline]
) -> None:
    cuda, exact = CudaSimulator(), on("onnxruntime")
    with simulator_bundle.pipeline(engines, cuda, memory) as pipeline:
        for each in ([], [files[0]], [files[0]], [files[1]], [], [files[2]], [files[0]]):
            pipeline.set_loras(each)
            exact.set_loras(each)
            found, expected = pixels(TASKS[task](pipeline)), pixels(TASKS[task](exact))
            assert far(found, expected) < 1e-3  # ranks are rounded up, and sums with them
    assert not cuda.faults


def test_a_swap_inside_a_bucket_moves_nothing(engines: Path, files: list[Path]) -> None:
    """The loop's recording stays: the second LoRA is a copy into the first one's place, and one launch."""
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(engines, cuda) as pipeline:
        found, launches, captures, places = [], [], [], []
        for each in (0, 0, 1, 0, 1):
            pipeline.set_loras([files[each]])
            found.append(pixels(pipeline.generate(**ASKED)))
            launches.append(cuda.calls["cudaGraphLaunch"])
            captures.append(cuda.calls["cudaStreamBeginCapture"])
            with pipeline.loras.lent() as lent:
                places.append(lent.places)
    assert launches == [0, 1, 2, 3, 4]
    assert captures == [0, 1, 1, 1, 1]
    assert len(set(places)) == 1
    assert all(places[0])
    for index in (1, 3):
        np.testing.assert_array_equal(found[index], found[0])
    np.testing.assert_array_equal(found[4], found[2])
    assert far(found[2], found[0]) > 0.2
    assert not cuda.faults


def test_recordings_with_a_lora_and_without_stay_beside_each_other(engines: Path, files: list[Path]) -> None:
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(engines, cuda) as pipeline:
        launches = []
        for each in ([], [files[0]], [], [files[1]], [], [files[0]], []):
            pipeline.set_loras(each)
            pipeline.generate(**ASKED)
            launches.append(cuda.calls["cudaGraphLaunch"])
    # The branches need more activations: the arena moves, and the plain loop runs by steps once more.
    assert launches == [0, 0, 0, 1, 2, 3, 4]
    assert cuda.calls["cudaStreamBeginCapture"] == 2


def test_a_gpu_rounds_ranks_up() -> None:
    names = {"stage": "denoiser", "down": "a", "up": "b", "rank": "r", "weights": ["w"]}
    three = Branch(**names, pieces=3, most=3 * 100)
    assert [three.rounded(rank) for rank in (1, 48, 49, 192, 193, 300)] == [48, 48, 192, 192, 300, 300]
    small = Branch(**names, pieces=1, most=8)
    assert [small.rounded(rank) for rank in (1, 8)] == [8, 8]


def test_walks_with_different_loras_may_take_turns(engines: Path, files: list[Path]) -> None:
    """What one walk is using is not written over for another of the same shapes."""
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(engines, cuda) as pipeline:
        expected = []
        for each in files[:2]:
            with pipeline.loras.lent(chosen(each)) as lent:
                expected.append(_walked(pipeline, lent, 1)[0])
        with pipeline.loras.lent(chosen(files[0])) as one, pipeline.loras.lent(chosen(files[1])) as other:
            assert not set(one.places) & set(other.places)
            walks = [_walk(pipeline, lent) for lent in (one, other)]
            last = [[np.array(step.latents.numpy()) for step in pair] for pair in zip(*walks, strict=True)][
                -1
            ]
    for found, exact in zip(last, expected, strict=True):
        np.testing.assert_array_equal(found, exact)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def _walk(pipeline: Pipeline, lent: Any) -> Iterator[Any]:
    from flux_trt.runtime.sampling import schedule
    from flux_trt.runtime.sampling.trajectory import Trajectory

    found = pipeline.bundle.manifest
    text = pipeline.encode(["a red circle"])
    levels = schedule.sigmas(found.schedule, STEPS, 16)
    start = np.random.default_rng(3).standard_normal((1, 16, found.model.channels), np.float32)
    conditions = {
        name: np.array(value.numpy())
        for name, value in pipeline.condition(text, levels, 3.5, adapted=lent).items()
    }
    return pipeline.walk(Trajectory(levels, start, ((4, 4),)), conditions, lent)


def _walked(pipeline: Pipeline, lent: Any, count: int) -> list[np.ndarray]:
    return [[np.array(step.latents.numpy()) for step in _walk(pipeline, lent)][-1] for _ in range(count)]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_steps_are_shared_by_those_with_the_same_loras(
    backend: str, files: list[Path], lora_bundle: Path, engines: Path
) -> None:
    """With one, another and none, they are those painted alone; what is lent comes back."""
    cuda = CudaSimulator()
    loaded = (
        simulator_bundle.pipeline(engines, cuda)
        if backend == "tensorrt"
        else Pipeline.load(lora_bundle, backend, "cpu")
    )
    with loaded as pipeline:
        contract, choices = pipeline.bundle.manifest, ([], [files[0]], [files[1]], [files[0]])
        requests = [
            Request.of(contract, "a red circle", size=SIZE, steps=2 + n, seed=n, lora=each)
            for n, each in enumerate(choices)
        ]
        alone = [[np.asarray(each.image) for each in pipeline.paint(request)] for request in requests]
        steps = Stepwise(pipeline)
        courses = {steps.begin(steps.prepare(each), 0): n for n, each in enumerate(requests)}
        found = {}
        while going := [each for each in courses if each.left]:
            assert steps.step(going) == {}
            for course in [each for each in going if not each.left]:
                found[courses[course]] = np.asarray(course.finish().image)
        for n, (image,) in enumerate(alone):
            np.testing.assert_array_equal(found[n], image, err_msg=f"picture {n}")
        assert not any(slot.users for slot in pipeline.loras._slots._slots)
        dropped = steps.begin(steps.prepare(requests[1]), 0)
        assert sum(slot.users for slot in pipeline.loras._slots._slots) == 1
        del dropped
        gc.collect()
        assert not any(slot.users for slot in pipeline.loras._slots._slots)
        steps.close()
    assert not cuda.faults
