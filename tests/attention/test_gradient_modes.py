"""What `libra` and `gim` hold constant, each operation alone against its formula in float64."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.attention.gradient_modes import gim_rules, libra_rules
from vitrail.attention.relevance_row import softened_backward
from vitrail.attention.tap import Tap
from vitrail.attention.visitors import LeafAttention


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


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("function", "share"), [
    (gelu, 1),
    (lambda x: x * torch.sigmoid(1.702 * x), 1),
    (lambda x: x.square() * x * x, 1),
    (lambda x: F.silu(x.chunk(2, dim=2)[0]) * x.chunk(2, dim=2)[1], 0.5),
    (lambda x: x * torch.sigmoid(x @ torch.eye(4, dtype=x.dtype)), 0.5),
])  # fmt: skip
def test_gim_halves_products_of_two_activations_but_none_inside_of_one(function, share):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    entering = x + 0  # a leaf would be taken for a weight
    (plain,) = torch.autograd.grad(function(entering).sum(), [x], retain_graph=True)
    with Tap(LeafAttention("gim"), images=2, gradient="gim"):
        output = function(entering).sum()
    (ours,) = torch.autograd.grad(output, [x])
    torch.testing.assert_close(ours, share * plain)


def test_gim_sees_a_score_that_has_won_its_row():
    scores, gradient = torch.tensor([[9.0, 0.0, -1e4]]).double(), torch.tensor([[1.0, 0.0, 0.0]]).double()
    rows = torch.softmax(scores / 2, -1)
    found = softened_backward(torch.softmax(scores, -1), gradient)
    torch.testing.assert_close(found, rows * (gradient - (rows * gradient).sum()) / 4)
    assert found[0, 0] > 10 * (torch.softmax(scores, -1)[0, 0] * (1 - torch.softmax(scores, -1)[0, 0]))
    assert not softened_backward(torch.zeros(1, 3), torch.ones(1, 3)).any()  # every key is masked
    assert F.gelu not in gim_rules()


@pytest.mark.parametrize(("rule", "options"), [(F.layer_norm, {"normalized_shape": (6,)}), (F.gelu, {}), (F.silu, {})])
def test_what_comes_out_may_be_changed_in_place(rule, options):
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    flows = []
    for change in (Tensor.mul, Tensor.mul_):
        first = x.clone().requires_grad_()
        output = change(libra_rules()[rule](first, **options), 3)
        flows.append(torch.autograd.grad(output.square().sum(), [first])[0])
    assert torch.equal(*flows)
