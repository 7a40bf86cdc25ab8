import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from flux_trt.runtime.bundle.manifest import Scheduler
from flux_trt.runtime.sampling import schedule

DEV = {
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
SCHNELL = {**DEV, "use_dynamic_shifting": False, "shift": 1.0}
SHIFTED = {**SCHNELL, "shift": 3.0}


@pytest.mark.parametrize("config", [DEV, SCHNELL, SHIFTED], ids=["dev", "schnell", "shifted"])
@pytest.mark.parametrize("tokens", [4, 16, 256, 1024, 4096, 16384])
@pytest.mark.parametrize("steps", [1, 2, 4, 12, 28, 50])
def test_sigmas_and_timesteps_equal_diffusers(config, tokens, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    # As FluxPipeline.__call__ does, step 5.
    shift = calculate_shift(
        tokens,
        config["base_image_seq_len"],
        config["max_image_seq_len"],
        config["base_shift"],
        config["max_shift"],
    )
    expected, _ = retrieve_timesteps(
        scheduler, steps, "cpu", sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift
    )
    levels = schedule.sigmas(Scheduler(**config), steps, tokens)
    assert levels.dtype == np.float32
    np.testing.assert_array_equal(levels, scheduler.sigmas.numpy())
    np.testing.assert_array_equal(schedule.timesteps(levels), (expected / 1000).numpy())
