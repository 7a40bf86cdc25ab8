"""Write the files beside this one: see README.md.

pip install bitsandbytes==0.50.2 torchao==0.18.0; python tests/quantised/write.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
Tensors = dict[str, torch.Tensor]


def tail(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().flatten()[-300:].clone()


def bitsandbytes() -> tuple[Tensors, Tensors]:
    import bitsandbytes as bnb

    codes: Tensors = {}
    numbers: Tensors = {}
    for kind, nested, shape, block, dtype in (
        ("nf4", False, (7, 129), 64, torch.bfloat16),
        ("nf4", True, (131, 129), 64, torch.bfloat16),
        ("fp4", False, (5, 33), 128, torch.float32),
        ("fp4", True, (3, 5), 64, torch.float16),
    ):
        name = f"{kind}{'_nested' * nested}.weight"
        weight = (torch.randn(shape) * 0.03).to(dtype)
        packed, state = bnb.functional.quantize_4bit(
            weight, blocksize=block, quant_type=kind, compress_statistics=nested
        )
        codes[name] = packed
        codes |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
        numbers[name] = tail(bnb.functional.dequantize_4bit(packed, state))
    weight = torch.randn(13, 21).half()
    packed, rows, _ = bnb.functional.int8_vectorwise_quant(weight)
    codes |= {
        "int8.weight": packed,
        "int8.SCB": rows,
        "int8.weight_format": torch.zeros((), dtype=torch.uint8),
    }
    numbers["int8.weight"] = tail(bnb.functional.int8_vectorwise_dequant(packed, rows))
    return codes, numbers


def torchao() -> tuple[Tensors, Tensors, dict[str, str]]:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(37, 11).bfloat16(), nn.LayerNorm(11))
    quantize_(model, Float8WeightOnlyConfig())
    codes, metadata = flatten_tensor_state_dict(model.state_dict())
    return codes, {"0.weight": tail(model[0].weight.dequantize())}, metadata


def main() -> None:
    torch.manual_seed(0)
    codes, numbers = bitsandbytes()
    save_file(codes, HERE / "bitsandbytes.safetensors")
    save_file(numbers, HERE / "bitsandbytes.numbers.safetensors")
    codes, numbers, metadata = torchao()
    save_file(codes, HERE / "torchao.safetensors", metadata=metadata)
    save_file(numbers, HERE / "torchao.numbers.safetensors")


if __name__ == "__main__":
    main()
