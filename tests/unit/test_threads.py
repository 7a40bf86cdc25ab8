"""One pipeline for many threads: whatever they ask for, each gets the picture that it would get alone."""

import shutil
import threading
import time

import numpy as np
import painting_threads
import pytest
import simulator_bundle
from painting_threads import ASKED, PROMPTS, REFERENCE, painted, stress
from simulator_cuda import CudaSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import BackendError
from flux_trt.runtime.sampling import noise, schedule
from flux_trt.runtime.turn import Turn

PROFILE = {**simulator_bundle.WIDE, "text": (1, 64, 512), "tokens": (1, 16, 64), "sequence": (1, 80, 1024)}
BACKENDS = ["onnxruntime", "openvino", "tensorrt"]


@pytest.fixture(scope="module", params=BACKENDS)
def pipeline(request, bundle, tmp_path_factory):
    root = bundle("flux-nano")
    if request.param != "tensorrt":
        with Pipeline.load(root, request.param, "cpu") as loaded:
            yield loaded
        return
    copy = tmp_path_factory.mktemp("threads") / "bundle"
    shutil.copytree(root, copy)
    simulator_bundle.add_engines(copy, profiles=[PROFILE])
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(copy, cuda) as loaded:
        yield loaded
    assert not cuda.faults
    assert cuda.calls["cudaGraphLaunch"] > 0


def test_every_task_in_every_thread(pipeline):
    assert stress(pipeline, [*ASKED.values(), REFERENCE], threads=4, rounds=1) == []


def walk(pipeline, seed, guidance):
    """The parts of a picture, one by one, each in whatever turn comes."""
    contract, grid = pipeline.bundle.manifest, (2, 3)
    levels = schedule.sigmas(contract.schedule, 3, 6)
    conditions = pipeline.condition(pipeline.encode(PROMPTS[:1]), levels, guidance)
    start = noise.draw(contract.model.noise, (seed,), grid)
    found = []
    for step in pipeline.denoise(start, levels, conditions, grid):
        found += [step.latents.numpy().copy(), step.predicted]
    found.append(np.asarray(pipeline.decode(step.latents, grid)[0]))
    pixels = np.asarray(painting_threads.scene())
    return [*found, pipeline.encode_picture(pixels).mode]


def test_the_parts_of_a_picture_in_every_thread(pipeline):
    """While others paint whole ones of the same shape."""
    alone = {seed: walk(pipeline, seed, 1.0 + seed) for seed in range(4)}
    picture = painted(pipeline, ASKED["text"], 7)
    wrong = []

    def parts(seed):
        for _ in range(3):
            for mine, exact in zip(walk(pipeline, seed, 1.0 + seed), alone[seed], strict=True):
                if not np.array_equal(mine, exact):
                    wrong.append(seed)

    def whole():
        for _ in range(3):
            if not np.array_equal(painted(pipeline, ASKED["text"], 7), picture):
                wrong.append("a picture")

    crew = [threading.Thread(target=parts, args=(seed,)) for seed in alone] + [threading.Thread(target=whole)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    assert wrong == []


def test_two_walks_of_one_shape_may_interleave_in_one_thread(pipeline):
    contract, grid = pipeline.bundle.manifest, (2, 2)
    levels = schedule.sigmas(contract.schedule, 4, 4)
    conditions = pipeline.condition(pipeline.encode(PROMPTS[:1]), levels, 2.0)
    starts = [noise.draw(contract.model.noise, (seed,), grid) for seed in (1, 2)]
    alone = [
        [step.latents.numpy().copy() for step in pipeline.denoise(start, levels, conditions, grid)]
        for start in starts
    ]
    walks = (pipeline.denoise(start, levels, conditions, grid) for start in starts)
    for number, steps in enumerate(zip(*walks, strict=True)):
        for step, exact in zip(steps, alone, strict=True):
            np.testing.assert_array_equal(step.latents.numpy(), exact[number])


def test_a_callback_may_paint(pipeline):
    """It has the turn: it need not wait for itself, and what is under way is not disturbed."""
    alone, other = painted(pipeline, ASKED["text"], 1), painted(pipeline, ASKED["text"], 2)
    inside = []

    def tell(what, done, total):
        if (what, done) == ("denoise", 1) and not inside:
            inside.append(None)
            inside[0] = painted(pipeline, ASKED["text"], 2)

    found = pipeline.generate(PROMPTS, seed=1, progress=tell, each_step=True, **ASKED["text"])
    np.testing.assert_array_equal([np.asarray(each) for each in found], alone)
    np.testing.assert_array_equal(inside[0], other)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_closing_waits_for_the_batch_and_refuses_the_rest(tiny, backend):
    pipeline, begun, said = Pipeline.load(tiny, backend, "cpu"), threading.Event(), []

    def slowly(what, done, total):
        begun.set()
        time.sleep(0.05)

    def work():
        try:
            pipeline.generate(["a"] * 50, progress=slowly)
        except BackendError as fault:
            said.append(str(fault))

    other = threading.Thread(target=work)
    other.start()
    begun.wait()
    pipeline.close()
    other.join()
    (line,) = said
    assert line.endswith("is closed; load the pipeline again")


def test_turns_are_given_in_the_order_they_are_asked_for():
    turn, order, waiting = Turn(), [], []

    def work(number):
        waiting.append(number)
        with turn, turn:
            assert turn.mine
            order.append(number)

    with turn:
        crew = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for number, each in enumerate(crew):
            each.start()
            while len(turn._waiting) <= number:
                time.sleep(0.001)
        assert order == []
    for each in crew:
        each.join()
    assert order == list(range(6))
    assert not turn.mine


def test_a_turn_ends_with_an_error():
    turn = Turn()
    with pytest.raises(KeyError), turn:
        raise KeyError
    with turn:
        assert turn.mine
