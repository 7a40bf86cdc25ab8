"""What LoRA files put before a module's name, by the tool that wrote them.

Sources: diffusers' loaders/lora_conversion_utils.py, ComfyUI's comfy/lora.py and lora_convert.py,
kohya-ss/sd-scripts networks/lora_flux.py, OneTrainer, LyCORIS, XLabs-AI/x-flux, BFL's src/flux/util.py.
"""

from __future__ import annotations

from flux_trt.runtime.lora.forms import Prefixes

PREFIXES: Prefixes = {
    "transformer": (
        ("transformer.", ".", "diffusers"),
        ("model.diffusion_model.", ".", "ComfyUI"),
        ("diffusion_model.", ".", "ComfyUI"),
        ("base_model.model.transformer.", ".", "PEFT"),
        ("base_model.model.", ".", "PEFT"),
        ("lora_unet_", "_", "kohya"),
        ("lora_transformer_", "_", "OneTrainer"),
        ("lycoris_", "_", "LyCORIS"),
        ("", ".", "bare"),
    ),
    "clip": (
        ("text_encoder.", ".", "diffusers"),
        ("text_encoders.clip_l.transformer.", ".", "ComfyUI"),
        ("text_encoders.clip_l.", ".", "ComfyUI"),
        ("lora_te1_", "_", "kohya"),
        ("lora_te_", "_", "kohya"),
    ),
    "t5": (
        ("text_encoder_2.", ".", "diffusers"),
        ("text_encoders.t5xxl.transformer.", ".", "ComfyUI"),
        ("text_encoders.t5xxl.", ".", "ComfyUI"),
        ("lora_te3_", "_", "kohya"),
        ("lora_te2_", "_", "OneTrainer"),
    ),
}
"""Part -> (what stands before the names, what stands for their dots, whose form that is)."""
