"""FLUX.1: its stages, in the order in which a picture passes them."""

STAGES = ("clip", "t5", "conditioner", "denoiser", "vae_encoder", "vae_decoder")
