"""Whole pictures on the simulated TensorRT against onnxruntime, in every memory mode."""

import itertools
import shutil

import numpy as np
import pytest
import simulator_bundle
import tiny_bundle
from simulator_cuda import CudaSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import BackendError, GpuMemoryError, PaintError
from flux_trt.runtime.sampling import noise, schedule
from flux_trt.runtime.sampling.loop import LoopShape
from flux_trt.runtime.sampling.trajectory import Trajectory

MODES = ("resident", "sequential", "streaming")
PROMPTS = ["a red circle", "blue square", "a red circle", "left"]


def pixels(images):
    return [np.asarray(image) for image in images]


@pytest.fixture(scope="module")
def engines(tiny, tmp_path_factory):
    """The tiny bundle with simulated engines."""
    root = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(tiny, root)
    simulator_bundle.add_engines(root, weight_streaming=True)
    return root


@pytest.fixture(scope="module")
def expected(tiny):
    with Pipeline.load(tiny, "onnxruntime", "cpu") as onnxruntime:
        return pixels(onnxruntime.generate(PROMPTS, count=2, batch=2, steps=5, size=(80, 48)))


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("memory", MODES)
def test_pictures_are_those_of_onnxruntime(engines, expected, memory, record):
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(engines, cuda, memory, record) as pipeline:
        found = pixels(pipeline.generate(PROMPTS, count=2, batch=2, steps=5, size=(80, 48)))
    np.testing.assert_array_equal(found, expected)
    # Four batches: the first step by step, then one launch each.
    assert cuda.calls["cudaGraphLaunch"] == (3 if record else 0)
    assert cuda.calls["cudaStreamBeginCapture"] == (1 if record else 0)
    assert not cuda.faults


@pytest.mark.parametrize("memory", MODES)
def test_a_loop_that_cannot_be_recorded_runs_step_by_step(tiny, tmp_path, expected, memory):
    shutil.copytree(tiny, tmp_path / "bundle")
    simulator_bundle.add_engines(tmp_path / "bundle", recordable=False, weight_streaming=True)
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(tmp_path / "bundle", cuda, memory) as pipeline:
        found = pixels(pipeline.generate(PROMPTS, count=2, batch=2, steps=5, size=(80, 48)))
    np.testing.assert_array_equal(found, expected)
    assert (cuda.calls["cudaStreamBeginCapture"], cuda.calls["cudaGraphLaunch"]) == (1, 0)


def test_an_engine_that_may_allocate_is_not_recorded_and_says_why(tiny, tmp_path, expected, caplog):
    """As TensorRT-RTX has it of engines built without REQUIRE_USER_ALLOCATION: asked, and not tried."""
    shutil.copytree(tiny, tmp_path / "bundle")
    simulator_bundle.add_engines(tmp_path / "bundle", plan={"user_allocation": False})
    cuda = CudaSimulator()
    caplog.set_level("INFO")
    with simulator_bundle.pipeline(tmp_path / "bundle", cuda) as pipeline:
        found = pixels(pipeline.generate(PROMPTS, count=2, batch=2, steps=5, size=(80, 48)))
    np.testing.assert_array_equal(found, expected)
    assert cuda.calls["cudaGraphLaunch"] == 0
    assert any("denoiser" in line and "cannot be recorded" in line for line in caplog.messages)
    (why,) = {line for line in caplog.messages if "step by step" in line}
    assert "may allocate while it runs; build it again, those of now do not" in why
    assert not cuda.faults


def test_an_engine_that_can_be_recorded_says_so(engines, caplog):
    caplog.set_level("INFO")
    with simulator_bundle.pipeline(engines, CudaSimulator()) as pipeline:
        pipeline.generate(PROMPTS[0], steps=2)
    told = [line for line in caplog.messages if "denoiser" in line and "can be recorded" in line]
    assert len(told) == 1, "asked once for a shape"


@pytest.mark.parametrize("record", [True, False])
def test_shapes_may_alternate_and_each_keeps_its_recording(engines, tiny, record):
    cuda = CudaSimulator()
    requests = [
        {"size": (80, 48), "steps": 3},
        {"size": (32, 32), "steps": 4},
        {"size": (80, 48), "steps": 2},
        {"size": (128, 128), "steps": 3},  # the arena grows: recordings are made anew
    ]
    with (
        simulator_bundle.pipeline(engines, cuda, record=record) as pipeline,
        Pipeline.load(tiny, "onnxruntime", "cpu") as onnxruntime,
    ):
        launches = []
        for turn in range(4):
            cuda.calls.clear()
            for index, request in enumerate(requests):
                seed = 10 * turn + index
                found = pixels(pipeline.generate("a red", seed=seed, guidance=turn, **request))
                exact = pixels(onnxruntime.generate("a red", seed=seed, guidance=turn, **request))
                np.testing.assert_array_equal(found, exact)
            launches.append(cuda.calls["cudaGraphLaunch"])
    # The first turn is plain, and the second where the arena has moved since; then each is one launch.
    assert launches[0] == 0
    assert launches[2:] == ([4, 4] if record else [0, 0])


def test_a_recording_is_made_anew_when_the_arena_has_moved(engines, tiny):
    """The size in the middle needs a larger arena than the one that the recording used."""
    cuda = CudaSimulator()
    sizes = [(32, 32)] * 3 + [(128, 128)] + [(32, 32)] * 3
    launches = []
    with (
        simulator_bundle.pipeline(engines, cuda) as pipeline,
        Pipeline.load(tiny, "onnxruntime", "cpu") as onnxruntime,
    ):
        for seed, size in enumerate(sizes):
            found, exact = (
                pixels(each.generate("a", seed=seed, size=size)) for each in (pipeline, onnxruntime)
            )
            np.testing.assert_array_equal(found, exact)
            launches.append(cuda.calls["cudaGraphLaunch"])
    assert launches == [0, 1, 2, 2, 2, 3, 4]
    assert not cuda.faults


def test_a_recording_ends_with_its_context(engines, tiny):
    """A launch does not count as use of a context: many other shapes drive it out."""
    cuda = CudaSimulator()
    others = [*((side, 64) for side in range(32, 129, 16)), (32, 32), (48, 32)]
    sizes = [(128, 128), (96, 96), (96, 96)]  # the largest first: the arena stays where it is
    sizes += [each for other in others for each in (other, (96, 96))] + [(96, 96)] * 2
    with (
        simulator_bundle.pipeline(engines, cuda) as pipeline,
        Pipeline.load(tiny, "onnxruntime", "cpu") as onnxruntime,
    ):
        for seed, size in enumerate(sizes):
            found, exact = (
                pixels(each.generate("a", seed=seed, size=size, steps=2)) for each in (pipeline, onnxruntime)
            )
            np.testing.assert_array_equal(found, exact)
    assert not cuda.faults
    assert cuda.calls["cudaStreamBeginCapture"] == 2


def test_a_recording_is_of_the_buffers_it_was_made_with(engines, tiny):
    """Modulation elsewhere, in the caller's own buffers, is not what was recorded."""
    cuda = CudaSimulator()
    with (
        simulator_bundle.pipeline(engines, cuda) as pipeline,
        Pipeline.load(tiny, "onnxruntime", "cpu") as onnxruntime,
    ):
        contract = pipeline.bundle.manifest
        levels = schedule.sigmas(contract.schedule, 3, 4)
        start = noise.draw(contract.model.noise, (0,), (2, 2))
        text = {each: each.encode(["a red"]) for each in (pipeline, onnxruntime)}
        kept = {each: each.condition(text[each], levels, 3.5) for each in (pipeline, onnxruntime)}
        others = {each: each.condition(text[each], levels, 9.0) for each in (pipeline, onnxruntime)}
        for parts in (kept, kept, kept, others, others, kept, others, others):
            *_, exact = onnxruntime.denoise(start, levels, parts[onnxruntime], (2, 2))
            trajectory = Trajectory(levels, start, ((2, 2),))
            text_tokens = pipeline.flow.text(parts[pipeline])
            with pipeline.loops.lent(LoopShape.of(trajectory, text_tokens)) as loop:
                loop.begin(trajectory, parts[pipeline])
                found = loop.run()
            np.testing.assert_array_equal(found.numpy(), exact.latents.numpy())
    assert cuda.calls["cudaGraphLaunch"] == 4


def test_other_levels_of_the_same_shape_are_uploaded(engines, tiny):
    cuda = CudaSimulator()
    with (
        simulator_bundle.pipeline(engines, cuda) as pipeline,
        Pipeline.load(tiny, "onnxruntime", "cpu") as onnxruntime,
    ):
        start = noise.draw(pipeline.bundle.manifest.model.noise, (0,), (2, 2))
        for shift in (1.0, 1.0, 0.5, 1.0):
            levels = np.linspace(shift, 0, 4).astype(np.float32)
            found = []
            for each in (pipeline, onnxruntime):
                parts = each.condition(each.encode(["a red"]), levels, 3.5)
                *_, step = each.denoise(start, levels, parts, (2, 2))
                found.append(step.latents.numpy().copy())
            np.testing.assert_array_equal(*found)


def test_between_steps_nothing_is_copied_and_nobody_waits(engines):
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(engines, cuda) as pipeline:
        contract = pipeline.bundle.manifest
        levels = schedule.sigmas(contract.schedule, 6, 4)
        conditions = pipeline.condition(pipeline.encode(["a"]), levels, 3.5)
        start = noise.draw(contract.model.noise, (0,), (2, 2))
        walk = pipeline.denoise(start, levels, conditions, (2, 2))
        next(walk)
        cuda.calls.clear()
        for _ in range(4):
            next(walk)
        assert not cuda.calls, "between steps only TensorRT is called"
        last = next(walk)
        assert cuda.calls == {"cudaMemcpyAsync": 1, "cudaStreamSynchronize": 1}, (
            "the look at the last latents"
        )
        assert not last.latents.on_host


def test_a_second_picture_uploads_only_what_is_new(engines):
    """Text, noise and guidance go up; dt and the rotation tables are there; one picture comes down."""
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(engines, cuda) as pipeline:
        for seed in range(2):
            pipeline.generate("a", seed=seed, size=(64, 32))
        cuda.copies.clear()
        pipeline.generate("a", seed=7, size=(64, 32))
    up = sorted(size for kind, size in cuda.copies if kind == "cudaMemcpyHostToDevice")
    down = sorted(size for kind, size in cuda.copies if kind == "cudaMemcpyDeviceToHost")
    steps, tokens, channels, text = 3, 8, tiny_bundle.CHANNELS, tiny_bundle.TEXT
    noise_bytes = 4 * tokens * channels
    assert up == sorted([8 * text, 8 * text, 4 * steps, 4, 4 * text, 4, noise_bytes])
    # CLIP's and T5's output, the look at the latents, and the picture.
    assert down == sorted([4, 4 * text, noise_bytes, 64 * 32 * 3])


def test_a_picture_needs_no_more_memory_than_the_one_before(engines):
    cuda = CudaSimulator()
    with simulator_bundle.pipeline(engines, cuda) as pipeline:
        used = []
        for seed in range(4):
            pipeline.generate(PROMPTS[:2], seed=seed, batch=2)
            used.append(cuda.used)
        assert used[1] == used[3]


def test_one_stage_at_a_time_fits_where_all_do_not(tiny, tmp_path, expected):
    shutil.copytree(tiny, tmp_path / "bundle")
    weights = 1 << 20
    simulator_bundle.add_engines(tmp_path / "bundle", weights=weights)
    cuda = CudaSimulator(memory=2 * weights)
    with pytest.raises(GpuMemoryError, match=r"--memory resident needs 0\.01 GB.*use --memory sequential"):
        simulator_bundle.pipeline(tmp_path / "bundle", cuda)
    with simulator_bundle.pipeline(tmp_path / "bundle", cuda, "sequential") as pipeline:
        found = pixels(pipeline.generate(PROMPTS, count=2, batch=2, steps=5, size=(80, 48)))
    np.testing.assert_array_equal(found, expected)
    assert cuda.used == 0


def test_in_sequential_mode_a_stage_is_loaded_once_for_several_pictures(engines, tiny):
    cuda = CudaSimulator()
    loaded = []
    with simulator_bundle.pipeline(engines, cuda, "sequential") as pipeline:
        load = pipeline.backend.load
        pipeline.backend.load = lambda path, name, stage: loaded.append(name) or load(path, name, stage)
        pipeline.generate("a", count=10, steps=1)
    once = ["conditioner", "denoiser", "vae_decoder"]
    assert loaded == ["clip", "t5", *once, *once], "ten pictures are two groups"


def test_streamed_weights_fit_where_one_stage_does_not(tiny, tmp_path, expected):
    shutil.copytree(tiny, tmp_path / "bundle")
    weights = 1 << 20
    simulator_bundle.add_engines(tmp_path / "bundle", weights=weights, weight_streaming=True)
    cuda = CudaSimulator(memory=weights * 3 // 4)
    for memory in ("resident", "sequential"):
        with pytest.raises(GpuMemoryError, match=f"--memory {memory} needs"):
            simulator_bundle.pipeline(tmp_path / "bundle", cuda, memory)
    with simulator_bundle.pipeline(tmp_path / "bundle", cuda, "streaming") as pipeline:
        found = pixels(pipeline.generate(PROMPTS, count=2, batch=2, steps=5, size=(80, 48)))
    np.testing.assert_array_equal(found, expected)


def test_the_denoiser_keeps_what_weights_fit(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "bundle")
    simulator_bundle.add_engines(tmp_path / "bundle", weights=1 << 24, weight_streaming=True)
    cuda = CudaSimulator(memory=(1 << 28) + (1 << 23))  # the headroom is 2**28
    with simulator_bundle.pipeline(tmp_path / "bundle", cuda, "streaming") as pipeline:
        pipeline.generate("a")
        # The half of the denoiser's weights that fits beside the headroom, and none of the others'.
        assert (1 << 23) * 0.9 < cuda.used < (1 << 23)


def test_flux_nano_is_painted_alike(bundle, tmp_path):
    source = bundle("flux-nano")
    shutil.copytree(source, tmp_path / "bundle")
    profile = {
        **simulator_bundle.WIDE,
        "text": (1, 64, 512),
        "tokens": (1, 16, 64),
        "sequence": (1, 80, 1024),
    }
    simulator_bundle.add_engines(tmp_path / "bundle", profiles=[profile], weight_streaming=True)
    prompts = ["a red circle in the center on a white background", "a blue square at the left"]
    wanted = {"steps": 2, "guidance": 1.0, "size": (64, 64)}
    with Pipeline.load(source, "onnxruntime", "cpu") as onnxruntime:
        exact = pixels(onnxruntime.generate(prompts, **wanted))
    for memory, record in itertools.product(MODES, (True, False)):
        cuda = CudaSimulator()
        with simulator_bundle.pipeline(tmp_path / "bundle", cuda, memory, record) as pipeline:
            found = pixels(pipeline.generate(prompts, **wanted))
        np.testing.assert_array_equal(found, exact)
        assert (cuda.calls["cudaGraphLaunch"] > 0) == record


def test_latents_that_overflow_are_reported_after_the_last_step(tmp_path):
    root = tiny_bundle.build(tmp_path / "wild", rate=-1e30)
    simulator_bundle.add_engines(root)
    with (
        simulator_bundle.pipeline(root, CudaSimulator()) as wild,
        pytest.raises(PaintError, match="after step 3 of 3"),
    ):
        wild.generate("a")


def test_steps_can_be_watched_and_stopped(engines, tiny):
    cuda = CudaSimulator()
    with (
        simulator_bundle.pipeline(engines, cuda) as pipeline,
        Pipeline.load(tiny, "onnxruntime", "cpu") as onnxruntime,
    ):
        seen = []
        for each in (pipeline, onnxruntime):
            contract = each.bundle.manifest
            levels = schedule.sigmas(contract.schedule, 5, 4)
            parts = each.condition(each.encode(["a red", "blue"]), levels, 2.0)
            start = noise.draw(contract.model.noise, (1, 2), (2, 2))
            steps = []
            for step in each.denoise(start, levels, parts, (2, 2)):
                steps.append(step.latents.numpy().copy())
                if step.index == 3:
                    break
            seen.append(steps)
        np.testing.assert_array_equal(*seen)


def test_a_size_that_the_decoder_does_not_take_is_refused_before_the_first_step(tiny, tmp_path):
    """96x32 has fewer tokens than 64x64: the denoiser takes it, and this decoder's w does not."""
    root = shutil.copytree(tiny, tmp_path / "bundle")
    sides = {"h": (1, 4, 4), "w": (1, 4, 4), "height": (16, 64, 64), "width": (16, 64, 64)}
    simulator_bundle.add_engines(root, [{**simulator_bundle.WIDE, **sides}])
    told = []
    with simulator_bundle.pipeline(root, CudaSimulator()) as pipeline:
        expected = r"vae_decoder was not built for 96x32; .*64x64.*--sizes 96x32"
        with pytest.raises(BackendError, match=expected):
            pipeline.generate("left", size=(96, 32), steps=3, progress=lambda *what: told.append(what))
        with pytest.raises(BackendError, match=r"was not built for batch 5; the nearest that fits: batch 4"):
            pipeline.generate("left", size=(64, 64), count=5, batch=5, steps=3)
    assert told == []
