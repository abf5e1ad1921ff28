"""What no gradient reaches is left out of the backward pass, and nothing of the answer with it."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from matrix import OPTIONS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vitrail
from vitrail.attention import calls, differentiate, relevance_row
from vitrail.attention import gradient_modes as module
from vitrail.attention.calls import AttentionCall
from vitrail.attention.differentiate import LayerListener
from vitrail.attention.gradient_modes import linear, nonzero_columns, nonzero_rows
from vitrail.attention.listeners import HeadNormListener, HeadShareListener, MatrixListener, RowGradientListener
from vitrail.attention.relevance_row import ELEMENTWISE, Collector, RelevanceRow, attention_backward
from vitrail.methods.attention_gradcam import RowsOfHeads


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_rows(gradient: Tensor) -> slice:
    return slice(0, gradient.shape[-2])


@given(st.integers(1, 9), st.sets(st.integers(0, 8)), st.integers(1, 3))
def test_no_row_with_a_gradient_is_left_out(rows: int, filled: set[int], batch: int) -> None:
    gradient = torch.zeros(batch, rows, 4)
    for row in (row for row in filled if row < rows):
        gradient[row % batch, row, row % 4] = 1e-30
    found = nonzero_rows(gradient)
    assert 0 <= found.start < found.stop <= rows
    outside = gradient.clone()
    outside[:, found] = 0
    assert not outside.any()
    assert found == slice(0, rows) or 2 * (found.stop - found.start) <= rows or found == slice(0, 1)


@given(st.integers(1, 9), st.sets(st.tuples(st.integers(0, 3), st.integers(0, 8))))
def test_no_column_with_a_gradient_is_left_out(columns: int, filled: set[tuple[int, int]]) -> None:
    gradient = torch.zeros(2, 4, columns)
    for row, column in ((row, column) for row, column in filled if column < columns):
        gradient[row % 2, row, column] = 1e-30
    found = nonzero_columns(gradient)
    assert 0 <= found.start < found.stop <= columns
    outside = gradient.clone()
    outside[..., found] = 0
    assert not outside.any()
    assert found == slice(0, columns) or 2 * (found.stop - found.start) <= columns


def test_not_a_number_is_no_column_to_leave_out() -> None:
    gradient = torch.zeros(1, 3, 9)
    gradient[..., 6:], gradient[0, 0, 0] = 1, math.nan
    assert nonzero_columns(gradient) == slice(0, 9)


@pytest.mark.parametrize("columns", [[], [6], [4, 5], [0, 6], list(range(7))])
def test_linear_layers_go_back_from_few_columns(columns: list[int]) -> None:
    weight, upstream, answers = drawn(7, 5), torch.zeros(2, 13, 7, dtype=torch.float64), []
    upstream[..., columns] = drawn(2, 13, len(columns), seed=2)
    for function in (linear, F.linear):
        tokens = drawn(2, 13, 5, seed=3).requires_grad_()
        answers.append(torch.autograd.grad(function(tokens, weight), [tokens], upstream)[0])
    torch.testing.assert_close(*answers, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gradient", ["leaf", "libra"])
def test_queries_and_keys_that_are_constant_cost_nothing(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 3 d² of a layer that gives queries, keys and values, d² is left; the first layer's has no backward."""
    family = FAMILIES["timm_vit"]
    model, images, flops, maps = family.model(), family.images(2), [], []
    for _ in range(2):
        ask = lambda: vitrail.explain(model, images, 0, method="complete", gradient=gradient, compete=False)  # noqa: E731
        ask()
        with FlopCounterMode(display=False) as counter:
            maps.append(ask().scores)
        flops.append(counter.get_total_flops())
        monkeypatch.setattr(module, "nonzero_columns", lambda flow: slice(0, flow.shape[-1]))
    width = next(module.out_features for module in model.module.modules() if isinstance(module, nn.Linear)) // 3
    tokens = 2 * (model.module.patch_embed.num_patches + 1)
    assert flops[1] - flops[0] >= 2 * 2 * width**2 * tokens * (len(model.module.blocks) - 2)
    assert flops[1] > flops[0]
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-45])
def test_what_is_no_zero_is_reached(value: float) -> None:
    gradient = torch.zeros(2, 3, 9, 4)
    gradient[1, 2, 8, 3] = value
    assert nonzero_rows(gradient) == slice(8, 9)


def test_no_images_have_no_rows_to_leave_out() -> None:
    assert nonzero_rows(torch.zeros(0, 13, 4)) == slice(0, 13)
    tokens = torch.zeros(0, 13, 5).requires_grad_()
    (flow,) = torch.autograd.grad(linear(tokens, torch.zeros(7, 5)).sum(), [tokens])
    assert flow.shape == (0, 13, 5)


@pytest.mark.parametrize("rows", [[], [0], [0, 1], [12], [3, 5], [0, 12], list(range(13))])
def test_linear_layers_go_back_as_pytorch_s_do(rows: list[int]) -> None:
    weight, bias, upstream = drawn(7, 5), drawn(7, seed=1), torch.zeros(2, 13, 7, dtype=torch.float64)
    upstream[:, rows] = drawn(2, len(rows), 7, seed=2)
    answers = []
    for function in (linear, F.linear):
        tokens = drawn(2, 13, 5, seed=3).requires_grad_()
        output = function(tokens, weight, bias)
        output.backward(upstream)
        assert tokens.grad is not None
        answers.append((output.detach(), tokens.grad))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_an_image_has_the_same_bytes_in_every_batch() -> None:
    weight, upstream = drawn(64, 96).float(), torch.zeros(9, 50, 64)
    upstream[:, 0] = drawn(9, 64, seed=1).float()

    def flow(some: slice) -> Tensor:
        tokens = drawn(9, 50, 96, seed=2).float()[some].requires_grad_()
        return torch.autograd.grad(linear(tokens, weight), [tokens], upstream[some])[0]

    alone = torch.cat([flow(slice(image, image + 1)) for image in range(9)])
    assert torch.equal(flow(slice(0, 9)), alone)


def test_what_linear_leaves_to_pytorch() -> None:
    weight, tokens = drawn(7, 5), drawn(2, 13, 5).requires_grad_()
    assert by_rows(linear(tokens, weight))
    assert not by_rows(linear(tokens[:, 0], weight))
    assert not by_rows(linear(tokens.detach(), weight))
    assert not by_rows(linear(tokens.to(torch.complex128), weight.to(torch.complex128)))
    for asked in ({"weight": weight.clone().requires_grad_()}, {"bias": drawn(7).requires_grad_()}):
        linear(tokens, **{"weight": weight, **asked}).sum().backward()
        assert all(tensor.grad is not None for tensor in asked.values())
    single = tokens.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(single, weight.float()).dtype == torch.bfloat16
    experts = torch.vmap(linear, in_dims=(None, 0))(tokens, drawn(3, 7, 5))
    assert experts.shape == (3, 2, 13, 7)


def by_rows(output: Tensor) -> bool:
    return output.grad_fn is not None and "Reached" in output.grad_fn.name()


def test_a_model_may_change_the_output_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """In releases of PyTorch before 2.15 the output of a linear layer is a view of a matrix."""

    def as_a_view(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, input.flatten(0, 1), weight.T).view(*input.shape[:-1], -1)

    weight, bias, tokens = drawn(7, 5), drawn(7, seed=1), drawn(2, 13, 5).requires_grad_()
    (expected,) = torch.autograd.grad(F.linear(tokens, weight, bias).relu()[:, 0].sum(), [tokens])
    for function in (F.linear, as_a_view):
        monkeypatch.setattr(module, "F", SimpleNamespace(linear=function))
        output = linear(tokens, weight, bias)
        assert by_rows(output)
        (ours,) = torch.autograd.grad(output.relu_()[:, 0].sum(), [tokens])
        torch.testing.assert_close(ours, expected)


def test_gradients_of_gradients() -> None:
    weight, answers = drawn(7, 5), []
    for function in (linear, F.linear):
        tokens = drawn(2, 13, 5).requires_grad_()
        (first,) = torch.autograd.grad(function(tokens.sin(), weight)[:, 0].square().sum(), [tokens], create_graph=True)
        answers.append(torch.autograd.grad(first.square().sum(), [tokens])[0])
    torch.testing.assert_close(*answers)


def begun(listener: LayerListener[Any], row: Tensor) -> Collector:
    listener.begin(row)
    return listener.collector(0)


COLLECTORS: dict[str, Callable[[Tensor], Collector]] = {
    **{name: lambda row, name=name: begun(RelevanceRow(name), row) for name in ELEMENTWISE},
    "centred": lambda row: begun(RelevanceRow("complete", centred=True), row),
    "clamped mean": lambda row: begun(RelevanceRow("complete", clamp_mean=True), row),
    "a rule of one's own": lambda row: begun(RelevanceRow(lambda attention, _: attention * 1.0), row),
    "norms": lambda row: begun(HeadNormListener(2), row),
    "heads' shares": lambda row: begun(HeadShareListener(), row),
    "matrices": lambda row: begun(MatrixListener("gradient"), row),
    "rows of the gradient": lambda row: begun(RowGradientListener(0, torch.tensor([0, 7]), head_importance=True), row),
    "rows of heads": RowsOfHeads,
}


def told(collector: object) -> list[Tensor]:
    """All tensors that a collector has filled, those of the collectors in it included."""
    found = []
    for value in vars(collector).values():
        found += [value] if isinstance(value, Tensor) else told(value) if hasattr(value, "add") else []
    return found


@pytest.mark.parametrize("rows", [[], [0], [0, 1], [39], [4, 5], [3, 21], [0, 39]])
@pytest.mark.parametrize("kind", ["plain", "causal", "masked"])
@pytest.mark.parametrize("budget", [1, 10**6], ids=["some blocks", "one block"])
@pytest.mark.parametrize("name", COLLECTORS)
def test_attention_goes_back_as_if_all_rows_were_walked(
    name: str, budget: int, kind: str, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "BLOCK_ELEMENTS", {"cpu": budget})
    mask = drawn(2, 1, 1, 40, seed=6) < 1 if kind == "masked" else None
    call = AttentionCall(*(drawn(2, 3, 40, 4, seed=seed) for seed in range(3)), mask, kind == "causal", 0.5)
    upstream = torch.zeros(2, 40, 3, 4, dtype=torch.float64).transpose(1, 2)  # as models have it: heads side by side
    upstream[:, :, rows] = drawn(2, 3, len(rows), 4, seed=4)
    answers = []
    for _ in range(2):
        collector = COLLECTORS[name](drawn(2, 40, seed=5))
        flows = attention_backward(call, upstream, collector, through_scores=True, through_value=True)
        answers.append([*flows, *told(collector)])
        monkeypatch.setattr(relevance_row, "nonzero_rows", all_rows)
    assert len(answers[0]) > 3
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    for holder in (module, relevance_row, differentiate):
        monkeypatch.setattr(holder, "nonzero_rows", all_rows)


@pytest.mark.parametrize("gradient", ["full", "leaf", "libra"])
@pytest.mark.parametrize("method", ["complete", "gae", "absolute", "gmar_l1", "gmar_l2"])
@pytest.mark.parametrize("kernel", ["blocks", "fused"])
def test_maps_are_the_same(method: str, gradient: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["timm_vit"]
    model, images = vitrail.wrap(family.build().double()), family.images(2, dtype=torch.float64)
    monkeypatch.setattr(differentiate, "fused_by_default", lambda *_: kernel == "fused")
    maps = []
    for _ in range(2):
        maps.append(vitrail.explain(model, images, [[0, 1], [2, 0]], method=method, gradient=gradient).scores)
        without(monkeypatch)
    torch.testing.assert_close(*maps, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "family",
    [
        "timm_vit",
        "torchvision_vit",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("timm_deit_distilled", "hf_vit", "open_clip")),
    ],
)
@pytest.mark.parametrize("method", ["complete", "gradcam", "grad_eclip", "legrad", "attcat", "fullgrad_plus", "dix"])
def test_maps_of_methods_with_graphs_of_their_own(method: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = FAMILIES[family]
    model, images = vitrail.wrap(known.build().double()), known.images(2, dtype=torch.float64)
    maps = []
    for _ in range(2):
        maps.append(vitrail.explain(model, images, 0, method=method, **OPTIONS.get(method, {})).scores)
        without(monkeypatch)
    torch.testing.assert_close(*maps, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("method", ["gae", "gradcam", "attcat", "dix"])
@pytest.mark.parametrize(("family", "fewer"), [("timm_vit", True), ("timm_vit_average", False)])
def test_only_what_is_read_costs(family: str, fewer: bool, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's last three linear layers are 9 d² of its 12 d² for each token; two, 8 d², lie behind the residual."""
    model, images = FAMILIES[family].model(), FAMILIES[family].images(2)
    options = OPTIONS.get(method, {})
    vitrail.explain(model, images, 0, method=method, **options)

    def multiplications() -> int:
        with FlopCounterMode(display=False) as counter:
            vitrail.explain(model, images, 0, method=method, **options)
        return counter.get_total_flops()

    ours = multiplications()
    without(monkeypatch)
    whole = multiplications()
    width = next(module.out_features for module in model.module.modules() if isinstance(module, nn.Linear)) // 3
    tokens = 2 * (model.module.patch_embed.num_patches + 1)
    passes = 2 if method == "dix" else 1  # dix goes back from other attentions than the model's own, too
    assert (whole - ours > passes * 0.8 * 2 * 8 * width**2 * tokens) == fewer
    assert (whole == ours) != fewer
