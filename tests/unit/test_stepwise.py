"""Pictures that are walked a step at a time beside others: bit for bit those that are painted alone."""

import random
import shutil

import loras
import numpy as np
import painting_threads
import pytest
import simulator_bundle
from painting_threads import ASKED, CONTROL, FILL, PROMPTS, REFERENCE
from simulator_cuda import CudaSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import BackendError, GpuMemoryError, PaintError
from flux_trt.runtime.stepwise import Stepwise
from flux_trt.runtime.tasks.request import Request

PROFILE = {**simulator_bundle.WIDE, "batch": (1, 2, 16), "text": (1, 64, 512)}
PROFILE |= {"tokens": (1, 16, 64), "sequence": (1, 80, 1024)}
BACKENDS = ["onnxruntime", "openvino", "tensorrt"]


def load(root, backend, folder):
    if backend != "tensorrt":
        return Pipeline.load(root, backend, "cpu")
    copy = shutil.copytree(root, folder / "bundle")
    simulator_bundle.add_engines(copy, profiles=[PROFILE])
    return simulator_bundle.pipeline(copy, CudaSimulator())


def asked(pipeline, seed, options):
    """A request for each prompt of what is asked."""
    contract, options = pipeline.bundle.manifest, {**options, "batch": 1, "seed": seed}
    if "target" in options:
        return Request.of_edit(contract, **options)
    return Request.of(contract, PROMPTS, **options)


def mixed(pipeline, tasks):
    """What is asked of it by many: every task, and steps and guidances of all kinds."""
    found = [asked(pipeline, seed, options) for seed, options in enumerate(tasks)]
    plain = {name: value for name, value in tasks[-1].items() if name not in ("steps", "batch")}
    for seed, (steps, guidance) in enumerate([(2, 1.0), (5, 3.5), (7, 2.0), (1, 4.5)]):
        told = {"guidance": guidance} if pipeline.bundle.manifest.guidance.kind == "embedded" else {}
        found.append(asked(pipeline, 20 + seed, {**plain, "steps": steps, **told}))
    if "target" not in plain and "ab2" in pipeline.bundle.manifest.glue:
        found.append(asked(pipeline, 30, {**plain, "steps": 4, "solver": "ab2"}))
    return found


def walked(pipeline, requests, draw):
    """All their pictures, each beginning at a moment of its own, in whatever company there is then."""
    waiting = [(n, index) for n, each in enumerate(requests) for index in range(len(each))]
    draw.shuffle(waiting)
    steps = Stepwise(pipeline)
    paintings = [steps.prepare(each) for each in requests]
    under_way, found, most = {}, {}, 0
    while waiting or under_way:
        for _ in range(draw.randint(0, 4)):
            if waiting:
                place = waiting.pop()
                under_way[steps.begin(paintings[place[0]], place[1])] = place
        chosen = [each for each in under_way if draw.random() < 0.8]
        assert steps.step(chosen) == {}
        most = max(most, len(chosen))
        for each in [each for each in chosen if not each.left]:
            found[under_way.pop(each)] = np.asarray(each.finish().image)
    assert most > 4
    return found


def company(pipeline, tasks):
    """Every picture in several companies, against the same alone."""
    requests = mixed(pipeline, tasks)
    alone = [[np.asarray(each.image) for each in pipeline.paint(request)] for request in requests]
    for seed in range(2):
        for (n, index), image in walked(pipeline, requests, random.Random(seed)).items():
            np.testing.assert_array_equal(image, alone[n][index], err_msg=f"{requests[n].task} {index}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("flux-nano", [*ASKED.values(), REFERENCE]),
        ("flux-nano-fill", [FILL, {**FILL, "steps": 5, "strength": 0.7}]),
        ("flux-nano-canny", [CONTROL, {**CONTROL, "steps": 6}]),
        ("dev-like", [ASKED["text"], ASKED["text, wide"]]),
    ],
)
def test_every_task_is_the_same_in_every_company(bundle, backend, name, tasks, tmp_path):
    with load(bundle(name), backend, tmp_path) as pipeline:
        company(pipeline, tasks)


@pytest.mark.parametrize("kind", ["distilled", "base", "kv", "dev"])
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_flux2_is_the_same_in_every_company(flux2_bundle, backend, kind, tmp_path):
    """References among the tokens or as keys and values, true guidance, windows of many lengths."""
    followed = {**REFERENCE, "reference": [painting_threads.scene((64, 64))]}
    tasks = [followed, {"size": (64, 32), "steps": 2}, {"size": (32, 48), "steps": 3}]
    with load(flux2_bundle(kind), backend, tmp_path) as pipeline:
        company(pipeline, tasks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loras_are_shared_by_those_who_have_the_same(lora_bundle, checkpoint, backend, tmp_path):
    """Some with one, some with another, some with none, in one loop of steps."""
    source, files = checkpoint("dev-like"), [tmp_path / f"{seed}.safetensors" for seed in (11, 12)]
    for seed, file in zip((11, 12), files, strict=True):
        loras.save(file, loras.FORMS["peft"](source, loras.update(source, seed, 0.12)))
    some = [None, files[0], (files[0], 0.5), files[1]]
    plain = {"size": painting_threads.SIZE, "steps": 3}
    tasks = [{**plain, **({} if each is None else {"lora": [each]})} for each in some]
    with load(lora_bundle, backend, tmp_path) as pipeline:
        company(pipeline, [*tasks, tasks[1], {**tasks[1], "negative": "green", "true_cfg": 2.5}])


def test_a_run_of_several_is_one_call(tiny):
    with Pipeline.load(tiny, "onnxruntime", "cpu") as pipeline:
        calls = []
        denoiser = pipeline._graphs["denoiser"]
        run = denoiser.run
        denoiser.run = lambda inputs, into=None: (
            calls.append(len(into["next_latents"].numpy())) or run(inputs, into)
        )
        steps = Stepwise(pipeline)
        paintings = [steps.prepare(asked(pipeline, 1, {"steps": many})) for many in (2, 5)]
        courses = [steps.begin(each, index) for each in paintings for index in range(2)]
        other = steps.prepare(asked(pipeline, 1, {"steps": 3, "size": (32, 64)}))
        assert steps.step([*courses, steps.begin(other, 0)]) == {}
        assert sorted(calls) == [1, 4]
        assert [each.left for each in courses] == [1, 1, 4, 4]
        with pytest.raises(ValueError, match="4 steps are left"):
            courses[-1].finish()


def test_one_that_fails_takes_no_other_with_it(tiny):
    with Pipeline.load(tiny, "onnxruntime", "cpu") as pipeline:
        steps = Stepwise(pipeline)
        painting = steps.prepare(asked(pipeline, 1, {"steps": 2}))
        good, poisoned = steps.begin(painting, 0), steps.begin(painting, 1)
        alone = [np.asarray(each.image) for each in pipeline.paint(asked(pipeline, 1, {"steps": 2}))]
        poisoned.walk.queue()
        poisoned.waiting.runs[0].inputs["latents"].numpy()[...] = np.nan
        poisoned.walk.queue = lambda: None
        faults = steps.step([good, poisoned])
        assert list(faults) == [poisoned]
        assert isinstance(faults[poisoned], PaintError)
        steps.step([good])
        np.testing.assert_array_equal(np.asarray(good.finish().image), alone[0])


def test_a_call_that_fails_is_made_again_for_each_alone(tiny):
    """As where memory is enough for one and not for all."""
    with Pipeline.load(tiny, "onnxruntime", "cpu") as pipeline:
        request = asked(pipeline, 1, {"steps": 2})
        alone = [np.asarray(each.image) for each in pipeline.paint(request)]
        steps = Stepwise(pipeline)
        painting = steps.prepare(request)
        courses = [steps.begin(painting, 0), steps.begin(painting, 1)]
        run = pipeline._graphs["denoiser"].run

        def refuse(inputs, into=None):
            if inputs["latents"].shape[0] > 1:
                raise GpuMemoryError("too much for it; use less")
            return run(inputs, into)

        pipeline._graphs["denoiser"].run = refuse
        for _ in range(2):
            assert steps.step(courses) == {}
        for course, image in zip(courses, alone, strict=True):
            np.testing.assert_array_equal(np.asarray(course.finish().image), image)


def test_a_step_of_a_gpu_is_recorded_once_for_any_number_of_steps(bundle, tmp_path):
    with load(bundle("flux-nano"), "tensorrt", tmp_path) as pipeline:
        cuda = pipeline.backend.gpu.driver
        steps = Stepwise(pipeline)
        requests = [asked(pipeline, 1, {"size": (32, 48), "steps": many}) for many in (4, 6, 9)]
        courses = [steps.begin(steps.prepare(each), 0) for each in requests]
        for _ in range(4):
            assert steps.step(courses) == {}
        assert cuda.calls["cudaGraphInstantiate"] == 1
        assert cuda.calls["cudaGraphLaunch"] == 3
        assert not cuda.faults


def test_sequential_mode_shares_no_steps(tiny):
    with (
        Pipeline.load(tiny, "onnxruntime", "cpu", memory="sequential") as pipeline,
        pytest.raises(BackendError, match="use --memory resident"),
    ):
        Stepwise(pipeline)
