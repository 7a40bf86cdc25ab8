"""Small FLUX.2 checkpoints with seeded random weights: nothing in them has a neutral value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TAPS = (2, 4, 6)
LENGTH = {"klein": 64, "dev": 300}
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{{ message['content'][0]['text'] }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ message['content'][0]['text'] }}[/INST]{% endif %}{% endfor %}"
)
SIGNS = {
    "klein": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "dev": [
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "[INST]",
        "[/INST]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[IMG]",
    ],
}
PIPELINES = {
    "distilled": Flux2KleinPipeline,
    "base": Flux2KleinPipeline,
    "kv": Flux2KleinKVPipeline,
    "dev": Flux2Pipeline,
}


def tokenizer(family: str, side: str) -> PreTrainedTokenizerFast:
    """Bytes and signs, with the family's chat template; BOS is added unless it is asked not to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SIGNS[family], *alphabet]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    if family == "dev":
        from tokenizers.processors import TemplateProcessing

        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = (
        {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
        if family == "klein"
        else {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=made,
        additional_special_tokens=[sign for sign in SIGNS[family] if sign not in named.values()],
        model_max_length=LENGTH[family],
        padding_side=side,
        **named,
    )
    found.chat_template = QWEN_TEMPLATE if family == "klein" else MISTRAL_TEMPLATE
    return found


def text_encoder(family: str, hidden: int = 32, layers: int = 8) -> nn.Module:
    """A language model of 8 layers, of which the second, fourth and sixth are tapped."""
    if family == "klein":
        config = Qwen3Config(
            vocab_size=300,
            hidden_size=hidden,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
        return Qwen3ForCausalLM(config)
    text = {
        "model_type": "mistral",
        "vocab_size": 300,
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": None,
        "pad_token_id": 3,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
        "image_size": 32,
        "patch_size": 16,
    }
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=8)
    )


def transformer(
    guidance: bool, context: int = 96, heads: int = 4, head_dim: int = 16, **more: Any
) -> nn.Module:
    asked = {"num_layers": 2, "num_single_layers": 3, **more}
    return Flux2Transformer2DModel(
        in_channels=16,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=context,
        axes_dims_rope=(head_dim // 4,) * 4,
        guidance_embeds=guidance,
        **asked,
    )


def vae(
    channels: tuple[int, ...] = (8, 16, 16, 16), groups: int = 4, decoder: Any = (4, 8, 16, 16)
) -> nn.Module:
    return AutoencoderKLFlux2(
        block_out_channels=channels,
        decoder_block_out_channels=decoder,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=groups,
        sample_size=64,
    )


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        shift=3.0,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def redraw(model: nn.Module) -> nn.Module:
    """Weights that would show a mistake: the default ones are too tame, norms and statistics neutral."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return model.eval()


def parts(kind: str, side: str | None = None, seed: int = 0, **more: Any) -> dict[str, Any]:
    """All that a pipeline is made of."""
    torch.manual_seed(seed)
    family = "dev" if kind == "dev" else "klein"
    given = {name: more[name] for name in ("transformer", "vae", "text_encoder") if name in more}
    found = {
        "transformer": redraw(transformer(kind == "dev")),
        "vae": redraw(vae()),
        "text_encoder": redraw(text_encoder(family)),
    }
    return {
        **found,
        **{name: redraw(made) for name, made in given.items()},
        "tokenizer": tokenizer(family, side or ("left" if kind == "dev" else "right")),
        "scheduler": scheduler(),
    }


def pipeline(kind: str, found: dict[str, Any]) -> Any:
    """diffusers' pipeline of the parts."""
    asked = {"is_distilled": True} if kind == "distilled" else {}
    made = PIPELINES[kind](**found, **asked)
    made.set_progress_bar_config(disable=True)
    return made


def write(kind: str, folder: Path, **more: Any) -> Path:
    """A whole diffusers folder."""
    found = parts(kind, **more)
    pipeline(kind, found).save_pretrained(folder)
    return folder
