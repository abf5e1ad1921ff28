"""What `libra` holds constant, each operation alone against its formula in float64."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.attention.gradient_modes import libra_rules


def flow_of(rule: Callable[..., Tensor], function: Callable[..., Tensor], *args, **kwargs) -> tuple[Tensor, Tensor]:
    """What flows back to the first argument of ones, and the output."""
    first = args[0].clone().requires_grad_()
    output = libra_rules()[rule](first, *args[1:], **kwargs)
    assert torch.equal(output, function(*args, **kwargs))
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad(output, [first], weights)[0], weights


@pytest.mark.parametrize(("function", "options", "gate"), [
    (F.gelu, {}, lambda x: 0.5 * math.erfc(-x / 2**0.5)),
    (F.gelu, {"approximate": "tanh"}, lambda x: (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2),
    (F.silu, {}, lambda x: 1 / (1 + math.exp(-x))),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gate_of_an_activation(function, options, gate, dtype):
    x = torch.tensor([[[-40.0, -3.0, -1e-3, -1e-30, 0.0, 1e-30, 1e-3, 0.7, 3.0, 40.0]]], dtype=dtype)
    flow, weights = flow_of(function, function, x, **options)
    gates = torch.tensor([gate(one) for one in x.double().flatten().tolist()], dtype=torch.float64)
    expected = gates.view_as(x) * weights.double()
    near = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(flow.double(), expected, rtol=near, atol=near)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_deviation_of_a_layer_norm(affine, dims, dtype):
    x = torch.randn(2, 5, 4, 6, dtype=dtype)
    shape = x.shape[-dims:]
    weight, bias = (torch.randn(shape, dtype=dtype) for _ in range(2)) if affine else (None, None)
    flow, upstream = flow_of(F.layer_norm, F.layer_norm, x, shape, weight, bias, 1e-3)
    over = tuple(range(-dims, 0))
    wide = x.double()
    held = (wide.var(dim=over, correction=0, keepdim=True) + 1e-3).sqrt()
    scaled = upstream.double() * (1 if weight is None else weight.double())
    expected = (scaled - scaled.mean(dim=over, keepdim=True)) / held
    near = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(flow.double(), expected, rtol=near, atol=near)


def test_a_layer_norm_in_half_precision():
    x = torch.randn(2, 5, 16).bfloat16()
    weight, bias = torch.randn(16).bfloat16(), torch.randn(16).bfloat16()
    flow, upstream = flow_of(F.layer_norm, F.layer_norm, x, (16,), weight, bias)
    scaled = upstream.double() * weight.double()
    expected = (scaled - scaled.mean(-1, keepdim=True)) / (x.double().var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert flow.dtype == torch.bfloat16
    torch.testing.assert_close(flow.double(), expected, rtol=2e-2, atol=2e-2)
