"""The second-order solver: its order on fields with closed solutions, its history, and who may ask for it."""

import json
import shutil

import numpy as np
import onnxruntime as ort
import pytest
import simulator_bundle
import tiny_bundle
from click.testing import CliRunner
from PIL import Image
from simulator_cuda import CudaSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.again import recorded
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.rules import Constant
from flux_trt.runtime.cli import main
from flux_trt.runtime.errors import BackendError, RequestError
from flux_trt.runtime.sampling import noise, schedule
from flux_trt.runtime.sampling.moves import move
from flux_trt.runtime.sampling.trajectory import Edit, Known, Trajectory
from flux_trt.runtime.tasks.request import Request

GRID, REFERENCE = (2, 3), (1, 2)
TOKENS = 8  # of the picture and a reference
CHANNELS = 16
SOLVERS = ("euler", "ab2")


@pytest.fixture(scope="module")
def glued(tiny, tmp_path_factory):
    """The tiny bundle, whose velocity is linear, with glue and a model's usual number of steps."""
    root = tmp_path_factory.mktemp("glued") / "bundle"
    shutil.copytree(tiny, root)
    tiny_bundle.add_glue(root)
    fields = json.loads((root / manifest.NAME).read_text())
    fields["defaults"]["steps"] = 12
    (root / manifest.NAME).write_text(manifest.Manifest.model_validate(fields).dumps())
    return root


class Field:
    """A velocity in closed form, as the loop that a move walks: real glue graphs, and no network.

    Data are Gaussian, mean `m` and deviation `s`, so that the flow from noise to them is known: at level
    sigma the latents are (1 - sigma) m + d(sigma) z, with d^2 = (1 - sigma)^2 s^2 + sigma^2, for ever the
    same z (Lipman et al. 2023, section 4.1). `m` may differ by half of the rows, as with a negative prompt.
    """

    def __init__(self, root, levels, rows, means, s=0.4):
        self.levels, self.rows, self.batch = levels, rows, rows
        self.means = np.array(means, np.float64).reshape(-1, 1, 1)
        self.s = s
        self.moving = (np.arange(TOKENS) < 6)[:, None].astype(np.float32)
        self.velocities = []
        self.sessions = {
            name: ort.InferenceSession(root / f"glue-{name}.onnx", providers=["CPUExecutionProvider"])
            for name in ("cfg", "paste", "ab2")
        }

    def put(self, name, array):
        return np.array(array, np.float32)

    spread = put

    def room(self, name, rows):
        return np.full((rows, TOKENS, CHANNELS), np.nan, np.float32)

    def pair(self, buffer):
        return buffer.reshape(2, self.rows // 2, *buffer.shape[1:])

    def dt(self, index):
        step = np.diff(self.levels)[index] * self.moving
        return np.broadcast_to(step, (self.rows, TOKENS, 1)).astype(np.float32)

    def deviation(self, sigma):
        return np.sqrt((1 - sigma) ** 2 * self.s**2 + sigma**2)

    def denoise(self, index, now, into):
        sigma = float(self.levels[index])
        slope = (sigma - (1 - sigma) * self.s**2) / self.deviation(sigma) ** 2
        velocity = (slope * (now - (1 - sigma) * self.means) - self.means).astype(np.float32)
        self.velocities.append(velocity.copy())
        if "velocity" in into:
            into["velocity"][:] = velocity
        if "next_latents" in into:
            into["next_latents"][:] = now + self.dt(index) * velocity

    def glue(self, name, inputs, into):
        (found,) = self.sessions[name].run(["next_latents"], inputs)
        into["next_latents"][:] = found


def walk(field, trajectory):
    """The latents at every level."""
    moves = move(field, trajectory)
    now = np.concatenate([trajectory.start] * trajectory.copies)
    spare, found = np.full_like(now, np.nan), [now.copy()]
    for index in range(trajectory.steps):
        now, spare = moves.step(field, index, now, spare)
        found.append(now.copy())
    return np.stack(found)


def levels_of(steps):
    """Uneven, as all of FLUX's are."""
    return schedule.sigmas(Constant(shift=3.0, round=None), steps, 6)


def start(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, TOKENS, CHANNELS)).astype(np.float32)


def order(errors):
    """Of convergence, by the last of errors for twice as many steps each."""
    return np.log2(errors[-2] / errors[-1])


STEPS = (16, 32, 64)


@pytest.mark.parametrize("scale", [None, 2.5])
def test_the_order_on_the_flow_to_a_gaussian(glued, scale):
    """Guided, both velocities are linear in the latents with the same slope: the mean is what is guided."""
    errors = {solver: [] for solver in SOLVERS}
    means, rows = ([0.7], 2) if scale is None else ([0.7, 0.7, -0.2, -0.2], 4)
    guided = 0.7 if scale is None else -0.2 + scale * (0.7 + 0.2)
    for solver in SOLVERS:
        for steps in STEPS:
            field = Field(glued, levels_of(steps), rows, means)
            first = start(2)
            trajectory = Trajectory(field.levels, first, (GRID, REFERENCE), scale=scale, solver=solver)
            last = walk(field, trajectory)[-1][:2]
            exact = guided + field.s * first[:, :6]  # level 1 is z itself
            errors[solver].append(np.abs(last[:, :6] - exact).max())
            np.testing.assert_array_equal(last[:, 6:], first[:, 6:], "references stay as they are")
    assert 0.8 < order(errors["euler"]) < 1.3, errors
    assert 1.7 < order(errors["ab2"]) < 2.5, errors
    assert all(ab2 < euler / 3 for ab2, euler in zip(errors["ab2"], errors["euler"], strict=True))


def formula(levels, first, velocities):
    """Variable-step Adams-Bashforth of second order, as the textbook has it: weights of v and of v'."""
    now, found, h = first.astype(np.float64), [], np.diff(levels.astype(np.float64))
    for index, velocity in enumerate(velocities):
        if index == 0:
            now = now + h[0] * velocity
        else:
            ratio = h[index] / h[index - 1]
            now = now + h[index] * ((1 + ratio / 2) * velocity - ratio / 2 * velocities[index - 1])
        found.append(now)
    return found


@pytest.mark.parametrize("scale", [None, 3.5])
def test_each_step_is_the_textbook_s(glued, scale):
    rows = 2 if scale is None else 4
    field = Field(glued, levels_of(6), rows, np.linspace(-1, 1, rows))
    trajectory = Trajectory(field.levels, start(2), (GRID, REFERENCE), scale=scale, solver="ab2")
    found = walk(field, trajectory)
    velocities = [each.astype(np.float64) for each in field.velocities]
    if scale is not None:
        velocities = [each[2:] + scale * (each[:2] - each[2:]) for each in velocities]
    exact = formula(field.levels, start(2), velocities)
    for mine, theirs in zip(found[1:], exact, strict=True):
        np.testing.assert_allclose(mine[:2, :6], theirs[:, :6], rtol=2e-5, atol=2e-5)


def test_what_a_mask_leaves_is_pasted_after_the_step(glued):
    """Inside, the steps are the textbook's, from latents whose outside is the picture's own."""
    field, rng = Field(glued, levels_of(5), 2, [0.3]), np.random.default_rng(4)
    source, noised = (rng.standard_normal((2, TOKENS, CHANNELS)).astype(np.float32) for _ in range(2))
    mask = np.zeros((2, TOKENS, CHANNELS), np.float32)
    mask[:, :3] = 1
    known = Known(source, noised, mask)
    trajectory = Trajectory(field.levels, noised, (GRID, REFERENCE), known=known, solver="ab2")
    found = walk(field, trajectory)
    exact = formula(field.levels, noised, [each.astype(np.float64) for each in field.velocities])
    for index, (mine, theirs) in enumerate(zip(found[1:], exact, strict=True)):
        np.testing.assert_allclose(mine[:, :3], theirs[:, :3], rtol=2e-5, atol=2e-5)
        sigma = field.levels[index + 1]
        kept = (1 - sigma) * source[:, 3:] + sigma * noised[:, 3:]
        np.testing.assert_allclose(mine[:, 3:], kept, atol=1e-6)


def test_the_order_of_whole_pictures(glued):
    """Through the pipeline: velocity is rate x latents + sigma + c, whose solution is known."""
    rate, prompt, guidance = tiny_bundle.RATE, "a red circle", 3.5
    errors = {}
    with Pipeline.load(glued, "onnxruntime", "cpu") as pipeline:
        for solver in SOLVERS:
            errors[solver] = []
            for steps in STEPS[:2]:
                seen = []
                pipeline.generate(
                    prompt, steps=steps, solver=solver, on_step=lambda step, to=seen: to.append(step)
                )
                last = seen[-1].latents.numpy().astype(np.float64)
                request = Request.of(pipeline.bundle.manifest, prompt, steps=steps)
                levels = request.levels.sigmas(6).astype(np.float64)
                first = pipeline_noise(pipeline, request)
                pooled = float(pipeline.encode([prompt])["pooled"][0, 0])
                drift = tiny_bundle.velocity_drift(0.0, guidance, pooled)

                def at(sigma, drift=drift):
                    """A particular solution."""
                    return -(sigma + drift) / rate - 1 / rate**2

                exact = at(0.0) + (first - at(levels[0])) * np.exp(rate * (0 - levels[0]))
                errors[solver].append(np.abs(last - exact).max())
    assert 0.8 < order(errors["euler"]) < 1.3, errors
    assert 1.7 < order(errors["ab2"]) < 2.4, errors


def pipeline_noise(pipeline, request):
    return noise.draw(pipeline.bundle.manifest.model.noise, request.seeds, request.grid)


def test_euler_is_what_was_always_painted(glued, tiny):
    with Pipeline.load(glued, "onnxruntime", "cpu") as new, Pipeline.load(tiny, "onnxruntime", "cpu") as old:
        asked = {"prompt": "a red circle", "steps": 5}
        (said,), (unsaid,) = new.generate(**asked, solver="euler"), new.generate(**asked)
        (before,) = old.generate(**asked)
    assert said.tobytes() == unsaid.tobytes() == before.tobytes()
    assert "solver" not in json.loads(said.info["flux_trt"])


def test_a_picture_says_its_solver_and_is_painted_again(glued, tmp_path):
    def run(*more):
        place = ["--device", "cpu", "--backend", "onnxruntime", "-o", str(tmp_path / more[-1])]
        found = CliRunner().invoke(main, ["generate", str(glued), *more[:-1], *place])
        assert found.exit_code == 0, found.output
        return found.output, (tmp_path / more[-1]).read_bytes()

    _, first = run("a red circle", "--steps", "5", "--solver", "ab2", "first.png")
    _, euler = run("a red circle", "--steps", "5", "euler.png")
    assert recorded(tmp_path / "first.png").parameters["solver"] == "ab2"
    assert "Sampler: AB2" in recorded_text(tmp_path / "first.png")
    assert run("--from", str(tmp_path / "first.png"), "again.png")[1] == first != euler
    said, other = run("--from", str(tmp_path / "first.png"), "--solver", "euler", "other.png")
    assert other == euler
    assert "--solver is 'euler'" in said and "'ab2'" in said
    said, _ = run("--from", str(tmp_path / "euler.png"), "--solver", "euler", "same.png")
    assert "--solver" not in said


def recorded_text(path):
    with Image.open(path) as image:
        return image.info["parameters"]


def test_jobs_have_it_too(glued, tmp_path):
    lines = [
        {"prompt": "a red circle", "steps": 5, "solver": "ab2", "output": "ab2.png"},
        {"prompt": "a red circle", "steps": 5, "output": "euler.png"},
        {"prompt": "a red circle", "solver": "heun", "output": "heun.png"},
    ]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    asked = ["generate", str(glued), "--jobs", str(tmp_path / "jobs.jsonl"), "--batch", "4"]
    found = CliRunner().invoke(main, [*asked, "--device", "cpu", "--backend", "onnxruntime"])
    assert found.exit_code == 1
    assert "2 painted" in found.output
    assert recorded(tmp_path / "ab2.png").parameters["solver"] == "ab2"
    assert (tmp_path / "ab2.png").read_bytes() != (tmp_path / "euler.png").read_bytes()
    assert "solver 'heun' is unknown; it is euler or ab2" in "".join(
        each.read_text() for each in tmp_path.glob("*.jsonl") if each.name != "jobs.jsonl"
    )


def test_who_is_refused_in_one_line(tiny, glued):
    old, new = manifest.read(tiny), manifest.read(glued)
    with pytest.raises(RequestError, match="built without; build the bundle again, or use --solver euler"):
        Request.of(old, "a red circle", solver="ab2")
    with pytest.raises(RequestError, match="solver 'heun' is unknown; it is euler or ab2"):
        Request.of(new, "a red circle", solver="heun")
    edits = new.model_copy(update={"tasks": [*new.tasks, "edit"]})
    with pytest.raises(RequestError, match="an edit is walked by Euler's steps"):
        Request.of_edit(edits, "cat.png", "a cat", "a dog", solver="ab2")
    latents = start(1)
    edit = Edit(latents, latents[None], 1, 0)
    with pytest.raises(ValueError, match="an edit is walked by Euler"):
        Trajectory(levels_of(2), latents, (GRID,), edit=edit, solver="ab2")


def test_a_model_of_few_steps_says_that_it_gains_nothing(glued, caplog):
    found = manifest.read(glued)
    Request.of(found, "a red circle", solver="ab2")
    assert not caplog.messages
    few = found.model_copy(update={"defaults": found.defaults.model_copy(update={"steps": 4})})
    Request.of(few, "a red circle", solver="euler")
    assert not caplog.messages
    Request.of(few, "a red circle", solver="ab2")
    (line,) = caplog.messages
    assert line.startswith(
        "solver ab2 gains nothing here: a tiny bundle is of a model that was distilled for 4 steps"
    )


def test_engines_of_old_are_refused_before_any_work(glued, tmp_path):
    root = tmp_path / "bundle"
    shutil.copytree(glued, root)
    simulator_bundle.add_engines(root)
    for folder in (root / "engines").glob("ab2-*"):
        shutil.rmtree(folder)
    with simulator_bundle.pipeline(root, CudaSimulator()) as pipeline:
        seen = []
        assert pipeline.generate("a red circle", steps=3)
        with pytest.raises(BackendError, match="ab2"):
            pipeline.generate("a red circle", steps=3, solver="ab2", progress=lambda *told: seen.append(told))
    assert not seen
