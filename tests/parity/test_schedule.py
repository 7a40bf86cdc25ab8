import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from family_rules import DEV, FLUX2_SCHEDULE, FLUX3_SCHEDULE, SCHNELL
from pydantic import ValidationError

from flux_trt.runtime.bundle.rules import Constant, Exponential
from flux_trt.runtime.sampling import schedule
from flux_trt.runtime.sampling.rounding import rounded

DYNAMIC = {
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
CONSTANT = {**DYNAMIC, "use_dynamic_shifting": False}
RULES = {
    "dev": (DYNAMIC, DEV),
    "schnell": ({**CONSTANT, "shift": 1.0}, SCHNELL),
    "shifted": (CONSTANT, Constant(shift=3.0, round=None)),
    "flux3": ({**CONSTANT, "shift": 6.93}, FLUX3_SCHEDULE),
}
TOKENS = [4, 16, 256, 1024, 4096, 4300, 4301, 16384]
STEPS = [1, 2, 4, 12, 28, 50]


def theirs(config, steps, mu):
    """As the pipelines' `__call__` does: the scheduler's sigmas, and its timesteps."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    sigmas = np.linspace(1.0, 1 / steps, steps)
    timesteps, _ = retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=mu)
    return scheduler.sigmas.numpy(), (timesteps / 1000).numpy()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("steps", STEPS)
def test_sigmas_and_timesteps_equal_diffusers(name, tokens, steps):
    config, rule = RULES[name]
    shift = calculate_shift(
        tokens,
        config["base_image_seq_len"],
        config["max_image_seq_len"],
        config["base_shift"],
        config["max_shift"],
    )
    expected, told = theirs(config, steps, shift)
    levels = schedule.sigmas(rule, steps, tokens)
    assert levels.dtype == np.float32
    np.testing.assert_array_equal(levels, expected)
    np.testing.assert_array_equal(schedule.timesteps(levels, rule), told)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("steps", STEPS)
def test_an_empirical_shift_equals_diffusers(tokens, steps):
    """With its jump above 4300 tokens, from where the steps do not count."""
    mu = compute_empirical_mu(tokens, steps)
    assert schedule.mu(FLUX2_SCHEDULE, steps, tokens) == mu
    expected, told = theirs(DYNAMIC, steps, mu)
    levels = schedule.sigmas(FLUX2_SCHEDULE, steps, tokens)
    np.testing.assert_array_equal(levels, expected)
    np.testing.assert_array_equal(schedule.timesteps(levels, FLUX2_SCHEDULE), told)


def test_times_may_be_rounded_to_bfloat16():
    rule = Constant(shift=6.93, round="bf16")
    levels = schedule.sigmas(rule, 50, 1)
    found = schedule.timesteps(levels, rule)
    expected = torch.from_numpy(levels[:-1]).bfloat16().float()
    # Times 1000 and back may move the last bit.
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-7)
    assert not np.array_equal(found, schedule.timesteps(levels))


def test_rounding_equals_torch():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.standard_normal(100_000).astype(np.float32),
            np.float32(
                [0, -0.0, 1.00390625, 1.01171875, -1.00390625, 3.3e38, 1e-40, 65504]
            ),  # ties among them
        ]
    )
    np.testing.assert_array_equal(
        rounded(values, "bf16"), torch.from_numpy(values).bfloat16().float().numpy()
    )
    assert rounded(values, None) is values


def test_a_line_needs_two_points():
    with pytest.raises(ValidationError, match="different numbers of tokens"):
        Exponential(tokens=[256, 256], mu=[0.5, 1.15], round=None)
