"""What FLUX.1's parts have in common at every size, as configs of diffusers and transformers.

flux-nano, the random checkpoints of the tests and the benchmark at full size say only how wide and how deep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import T5Config

SCALING, SHIFT = 0.3611, 0.1159
"""Of FLUX.1's own latents; flux-nano's are brought to mean 0 and deviation 1 in the weights."""


def vae(
    widths: Sequence[int],
    layers: int,
    side: int,
    groups: int = 32,
    scaling: float = SCALING,
    shift: float = SHIFT,
) -> dict[str, Any]:
    """Keywords of AutoencoderKL: 8x, 16 channels, no quant convolutions."""
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "latent_channels": 16,
        "sample_size": side,
        "scaling_factor": scaling,
        "shift_factor": shift,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
        "force_upcast": True,
    }


def t5(**sizes: Any) -> T5Config:
    """T5 v1.1, whose MLPs are gated."""
    return T5Config(feed_forward_proj="gated-gelu", **sizes)


def scheduler(dynamic: bool = True) -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's, whose noise levels depend on the size of the picture; or schnell's, whose do not."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0 if dynamic else 1.0,
        use_dynamic_shifting=dynamic,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
