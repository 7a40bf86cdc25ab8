import json
import logging
from itertools import pairwise

import numpy as np
import pytest
import tiny_bundle

from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import BackendError, BundleError, PaintError
from flux_trt.runtime.pictures import latents
from flux_trt.runtime.sampling import noise, schedule
from flux_trt.runtime.sampling.trajectory import Trajectory
from flux_trt.runtime.tasks.request import Request

RED_CIRCLE = np.mean([1, 4, 5, 7, 2, 0])  # <start> a red circle <end> <pad>


@pytest.fixture(scope="module")
def pipeline(tiny):
    with Pipeline.load(tiny, "onnxruntime", device="cpu") as loaded:
        yield loaded


def walk(pipeline, seed, grid, steps, guidance, pooled=RED_CIRCLE):
    """The latents after every step in closed form: an Euler walk of dx = rate x + drift, in float64."""
    contract = pipeline.bundle.manifest
    levels = schedule.sigmas(contract.schedule, steps, grid[0] * grid[1]).astype(np.float64)
    x = noise.draw(contract.model.noise, (seed,), grid).astype(np.float64)
    for level, following in pairwise(levels):
        velocity = tiny_bundle.RATE * x + tiny_bundle.velocity_drift(level, guidance, pooled)
        x = x + (following - level) * velocity
        yield x


def picture_of(packed, grid):
    grey = 128 + 32 * packed.reshape(*grid, tiny_bundle.CHANNELS).mean(-1)
    return np.kron(grey, np.ones((16, 16)))[..., None].repeat(3, -1)


def pixels(image):
    return np.asarray(image, np.float64)


def start(pipeline, seeds, grid, steps, prompt="a red circle", guidance=3.5):
    contract = pipeline.bundle.manifest
    levels = schedule.sigmas(contract.schedule, steps, grid[0] * grid[1])
    conditions = pipeline.condition(pipeline.encode([prompt] * len(seeds)), levels, guidance)
    return noise.draw(contract.model.noise, seeds, grid), levels, conditions, grid


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_step_follows_the_closed_form(pipeline, steps):
    grid = (3, 5)
    begin = start(pipeline, (4, 9), grid, steps)
    kept = begin[0].copy()
    found = [(step.index, step.sigma, step.latents.numpy().copy()) for step in pipeline.denoise(*begin)]
    assert [index for index, _, _ in found] == list(range(1, steps + 1))
    assert found[-1][1] == 0
    for row, seed in enumerate((4, 9)):
        for (_, _, packed), expected in zip(found, walk(pipeline, seed, grid, steps, 3.5), strict=True):
            np.testing.assert_allclose(packed[row], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(begin[0], kept)


def test_the_picture_follows_the_closed_form(pipeline):
    image = pipeline.generate("a red circle", size=(80, 48), steps=4, guidance=2.0, seed=3)[0]
    assert image.size == (80, 48)
    *_, last = walk(pipeline, 3, (3, 5), 4, 2.0)
    # The decoder cuts off the fraction of a grey.
    assert np.abs(pixels(image) - picture_of(last, (3, 5))).max() <= 1


def test_a_picture_does_not_depend_on_its_company(pipeline):
    prompts = ["a red circle", "blue square", "a red circle"]
    together = pipeline.generate(prompts, seed=5, count=2, batch=4)
    assert len(together) == 6
    for index, image in enumerate(together):
        alone = pipeline.generate(prompts[index // 2], seed=5 + index)[0]
        np.testing.assert_array_equal(pixels(image), pixels(alone))
    assert len({image.tobytes() for image in together}) == 6


def test_parameters_are_with_the_picture(pipeline):
    image = pipeline.generate("blue", seed=None, steps=2)[0]
    used = json.loads(image.info["flux_trt"])
    assert used["prompt"] == "blue"
    assert (used["steps"], used["guidance"], used["width"], used["height"]) == (2, 3.5, 48, 32)
    assert used["bundle"] == pipeline.bundle.digest
    again = pipeline.generate("blue", seed=used["seed"], steps=2)[0]
    np.testing.assert_array_equal(pixels(again), pixels(image))


def test_each_prompt_is_encoded_once(pipeline):
    told = []
    pipeline.generate(
        ["a", "red", "a"], count=2, steps=2, progress=lambda *report: told.append(report), batch=4
    )
    assert [report for report in told if report[0] == "encode"] == [("encode", 2, 2)]
    assert [done for stage, done, total in told if stage == "denoise"] == [4, 8, 10, 12]
    assert [report for report in told if report[0] == "decode"] == [("decode", 4, 6), ("decode", 6, 6)]


def test_text_that_is_not_read_is_told(pipeline, caplog):
    with caplog.at_level(logging.WARNING):
        pipeline.generate("a red circle left blue square", steps=1)
    assert [record.message for record in caplog.records] == [
        f"{encoder} reads only 6 tokens; not read: 'blue square'" for encoder in ("clip", "t5")
    ]


def test_the_loop_can_be_stopped_early(pipeline):
    steps = pipeline.denoise(*start(pipeline, (0,), (2, 2), 5))
    next(steps)
    second = next(steps).latents
    expected = list(walk(pipeline, 0, (2, 2), 5, 3.5))[1]
    np.testing.assert_allclose(second.numpy(), expected, rtol=1e-5, atol=1e-5)
    preview = pipeline.decode(second, (2, 2))[0]
    assert np.abs(pixels(preview) - picture_of(expected, (2, 2))).max() <= 1


def test_latents_that_overflow_are_reported_with_the_step(tmp_path):
    root = tiny_bundle.build(tmp_path / "wild", rate=-1e30)
    with (
        Pipeline.load(root, "onnxruntime", device="cpu") as wild,
        pytest.raises(PaintError, match="after step 2 of 3"),
    ):
        wild.generate("a")


def test_a_model_without_guidance(tmp_path):
    root = tiny_bundle.build(tmp_path / "schnell", guidance=False, dynamic_shift=False)
    with Pipeline.load(root, "onnxruntime", device="cpu") as schnell:
        image = schnell.generate("a red circle", steps=2)[0]
        *_, last = walk(schnell, 0, (2, 3), 2, guidance=0)
    assert json.loads(image.info["flux_trt"])["guidance"] is None
    assert np.abs(pixels(image) - picture_of(last, (2, 3))).max() <= 1


def test_a_closed_pipeline_says_so(tiny):
    with Pipeline.load(tiny, "onnxruntime", device="cpu") as loaded:
        pass
    loaded.close()
    with pytest.raises(BackendError, match="is closed"):
        loaded.generate("a")


def test_a_partial_bundle_names_the_missing_stage(tmp_path):
    root = tiny_bundle.build(tmp_path / "part", patch_manifest=lambda fields: fields["stages"].pop("t5"))
    with pytest.raises(BundleError, match="without the stage t5"):
        Pipeline.load(root, "onnxruntime", device="cpu")


def test_bf16_is_refused_before_any_graph_is_loaded(tmp_path):
    def bf16(fields):
        fields["stages"]["vae_decoder"]["precision"] = "bf16"
        fields["stages"]["clip"]["inputs"][0]["dims"] = ["would fail", "if it were loaded first"]

    root = tiny_bundle.build(tmp_path / "bf16", patch_manifest=bf16)
    with pytest.raises(BackendError, match="vae_decoder is bf16"):
        Pipeline.load(root, "onnxruntime", device="cpu")


def test_seconds_are_measured_per_stage(pipeline):
    painted = next(pipeline.paint(Request.of(pipeline.bundle.manifest, "a")))
    assert list(painted.seconds) == ["encode", "condition", "denoise", "decode"]
    assert all(seconds >= 0 for seconds in painted.seconds.values())
    assert latents.grid(*painted.image.size, 16, pipeline.bundle.manifest.sizes) == (2, 3)


def test_tiles_make_the_same_picture_where_the_decoder_is_local(tiny):
    told = []
    asked = {"size": (112, 80), "seed": 3}
    with Pipeline.load(tiny, "onnxruntime") as whole, Pipeline.load(tiny, "onnxruntime", tile=64) as cut:
        (expected,) = whole.generate("a red", **asked)
        (found,) = cut.generate("a red", progress=lambda *seen: told.append(seen), **asked)
    apart = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
    assert apart.max() <= 1
    assert ("decode tiles", 6, 6) in told


def test_reference_tokens_ride_along_unchanged(pipeline):
    levels = schedule.sigmas(pipeline.bundle.manifest.schedule, 4, 4)
    parts = pipeline.condition(pipeline.encode(["a red", "blue"]), levels, 3.5)
    rng = np.random.default_rng(0)
    start = rng.standard_normal((2, 4 + 3 + 6, tiny_bundle.CHANNELS)).astype(np.float32)
    grids = ((2, 2), (1, 3), (3, 2))
    seen = [step.latents.numpy().copy() for step in pipeline.walk(Trajectory(levels, start, grids), parts)]
    alone = Trajectory(levels, start[:, :4], grids[:1])
    plain = [step.latents.numpy().copy() for step in pipeline.walk(alone, parts)]
    assert len(seen) == 4
    for now, alone in zip(seen, plain, strict=True):
        np.testing.assert_array_equal(now[:, 4:], start[:, 4:])
        np.testing.assert_allclose(now[:, :4], alone, rtol=1e-6)  # these graphs look at each token alone
