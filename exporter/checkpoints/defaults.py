"""What a config leaves out: the entries that diffusers and transformers fill in by themselves.

Published configs hold what there was when they were written: the `transformer/config.json` of FLUX.1-dev
knows neither `axes_dims_rope` nor `out_channels`. Values are the classes' own (a test compares them with the
installed ones). The VAE's `sample_size` is not among them: FluxPipeline paints 1024 pixels whatever it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FLUX_TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": None,
}
"""FluxTransformer2DModel, but for `axes_dims_rope`: its (16, 56, 56) fits heads of 128 channels only, see
`params.axes_of`."""

FLUX2_TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 128,
    "out_channels": None,
    "num_layers": 8,
    "num_single_layers": 48,
    "attention_head_dim": 128,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 2000,
    "eps": 1e-6,
    "guidance_embeds": True,
}

FLUX3_TRANSFORMER = {
    "in_channels": 128,
    "cond_in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 28,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 20480,
    "timestep_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 10000,
    "eps": 1e-6,
    "flow_map": False,
}

AUTOENCODER_KL = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}

AUTOENCODER_KL_FLUX2 = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "decoder_block_out_channels": None,
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 32,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "batch_norm_eps": 1e-4,
    "patch_size": (2, 2),
}

CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}

T5_ENCODER = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}

FLOW_MATCH_EULER = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "time_shift_type": "exponential",
    "stochastic_sampling": False,
}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "transformer": FLUX_TRANSFORMER,
    "vae": AUTOENCODER_KL,
    "clip": CLIP_TEXT,
    "t5": T5_ENCODER,
    "text": {},
    "scheduler": FLOW_MATCH_EULER,
}
OF_CLASS: Mapping[str, Mapping[str, Any]] = {
    "Flux2Transformer2DModel": FLUX2_TRANSFORMER,
    "Flux3Transformer2DModel": FLUX3_TRANSFORMER,
    "AutoencoderKLFlux2": AUTOENCODER_KL_FLUX2,
}
"""Classes that share a part with another one."""


def completed(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a part with what its class would fill in; what it says itself stays, nulls too."""
    return {**OF_CLASS.get(str(config.get("_class_name")), DEFAULTS[part]), **config}
