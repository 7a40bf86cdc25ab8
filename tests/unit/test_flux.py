"""The transformer written for export: precision rules that no oracle has."""

from __future__ import annotations

import pytest
import torch
from checkpoints import NANO

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux1.model import Conditioner, Denoiser, Linear
from flux_trt.exporter.families.flux1.params import flux_params
from flux_trt.exporter.families.layers import residual

PARAMS = flux_params(open_checkpoint(str(NANO)).parts["transformer"])
TOKENS, TEXT = 12, 5


def large_denoiser(size: float) -> Denoiser:
    """Weights that drive the residual stream beyond float16's 65504."""
    torch.manual_seed(0)
    model = Denoiser(PARAMS).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("proj.weight", "mlp.2.weight", "linear2.weight")):
            parameter.data *= size
    return model


def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    D, E = PARAMS.hidden_size, PARAMS.head_dim
    angles = torch.rand(TEXT + TOKENS, E // 2)
    return (
        torch.randn(2, TOKENS, 64),
        -torch.rand(2, TOKENS, 1),
        torch.randn(2, TEXT, D),
        torch.randn(2, PARAMS.modulation_rows, D),
        angles.cos(),
        angles.sin(),
    )


@torch.no_grad()
@pytest.mark.parametrize("size", [1.0, 3e4])
def test_fp16_survives_residuals_beyond_65504(size: float) -> None:
    model, feeds = large_denoiser(size), inputs()
    stream: list[float] = []
    for block in model.single_blocks:
        block.register_forward_hook(lambda _m, _i, out: stream.append(float(out.abs().max())))
    expected, _ = model(*feeds)
    if size > 1:
        assert max(stream) > 65504, "the case must be one that plain float16 cannot hold"
    found, _ = model.half()(*feeds)
    assert torch.isfinite(found).all()
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 2e-2


@torch.no_grad()
def test_fp16_saturates_where_even_a_branch_overflows() -> None:
    found, velocity = large_denoiser(5e5).half()(*inputs())
    assert torch.isfinite(found).all()
    assert torch.isfinite(velocity).all()


@torch.no_grad()
def test_plain_float16_would_fail_there() -> None:
    """The same weights with a float16 residual stream give inf or nan: the rule is needed."""
    model, feeds = large_denoiser(3e4), inputs()
    model = model.half()
    seen = []
    for block in model.single_blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out.half()))
    model(*feeds)
    assert any(not torch.isfinite(x).all() for x in seen)


def test_linear_saturates_in_fp16_only() -> None:
    layer = Linear(2, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 300.0)
    x = torch.tensor([[300.0, 300.0]])
    with torch.no_grad():
        assert layer(x).item() == 180_000
        assert layer.half()(x).item() == 65504
        assert layer.bfloat16()(x).item() == pytest.approx(180_000, rel=1e-2)


def test_the_two_halves_are_exactly_a_bfl_checkpoint() -> None:
    with torch.device("meta"):
        conditioner, denoiser = Conditioner(PARAMS), Denoiser(PARAMS)
    ours = [{name for name, _ in module.named_parameters()} for module in (conditioner, denoiser)]
    assert not ours[0] & ours[1]
    found = open_checkpoint(str(NANO)).parts["transformer"].tensors.values()
    count = sum(p.numel() for module in (conditioner, denoiser) for p in module.parameters())
    assert count == sum(torch.Size(info.shape).numel() for info in found)


@torch.no_grad()
def test_tokens_with_dt_0_stay_as_they_are() -> None:
    latents, dt, *rest = inputs()
    dt[:, 7:] = 0
    found, velocity = Denoiser(PARAMS).eval()(latents, dt, *rest)
    assert torch.equal(found[:, 7:], latents[:, 7:])
    assert not torch.equal(found[:, :7], latents[:, :7])
    assert velocity[:, 7:].abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("with_branch", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_layer_takes_its_input_in_parts(dtype: torch.dtype, with_branch: bool) -> None:
    torch.manual_seed(2)
    layer, parts = Linear(24, 7).to(dtype), torch.randn(24).split((5, 3, 16))
    if with_branch:
        layer.branch = torch.randn(24, 2), torch.randn(2, 7)
    found, whole = layer(*parts), torch.cat(parts)
    assert found.dtype == torch.float32
    exact = layer.double()
    expected = torch.nn.functional.linear(whole.double(), exact.weight, exact.bias)
    if layer.branch is not None:
        down, up = (each.double() for each in layer.branch)
        expected += whole.double() @ down @ up
    rounding = torch.finfo(dtype).eps * (whole.abs().double() @ exact.weight.abs().T + 1)
    limit = 2 * rounding if layer.branch is None else 60 * torch.finfo(dtype).eps
    assert ((found - expected).abs() <= limit).all()


@torch.no_grad()
def test_parts_that_overflow_to_both_sides_are_finite_in_fp16() -> None:
    layer = Linear(2, 1, bias=False)
    layer.weight.copy_(torch.tensor([[300.0, -300.0]]))
    layer.branch = torch.tensor([[300.0], [-300.0]]), torch.ones(1, 1)
    x = torch.tensor([[300.0]])
    assert layer.half()(x, x).item() == 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_residual_is_its_sum_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x, gate, branch = torch.randn(2, 5, 8).to(dtype), torch.randn(2, 1, 8), torch.randn(2, 5, 8).to(dtype)
    assert torch.equal(residual(x, gate, branch), (x.float() + gate * branch.float()).to(dtype))
