"""What no gradient reaches is left out of the backward pass, and nothing of the answer with it."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vitrail
from vitrail.attention import backward, differentiate, reached
from vitrail.attention.backward import attention_backward
from vitrail.attention.calls import AttentionCall
from vitrail.attention.reached import linear, reached_rows
from vitrail.attention.weighting import ELEMENTWISE, Collector, HeadNorms, RowUpdate
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
    found = reached_rows(gradient)
    assert 0 <= found.start < found.stop <= rows
    outside = gradient.clone()
    outside[:, found] = 0
    assert not outside.any()
    assert found == slice(0, rows) or 2 * (found.stop - found.start) <= rows or found == slice(0, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-45])
def test_what_is_no_zero_is_reached(value: float) -> None:
    gradient = torch.zeros(2, 3, 9, 4)
    gradient[1, 2, 8, 3] = value
    assert reached_rows(gradient) == slice(8, 9)


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


def test_what_linear_leaves_to_pytorch() -> None:
    weight = drawn(7, 5)
    tokens = drawn(2, 13, 5).requires_grad_()
    assert "Rows" in linear(tokens, weight).grad_fn.name()  # pyright: ignore[reportOptionalMemberAccess]
    assert "Rows" not in linear(tokens[:, 0], weight).grad_fn.name()  # pyright: ignore[reportOptionalMemberAccess]
    asked = weight.clone().requires_grad_()
    linear(tokens, asked).sum().backward()
    assert asked.grad is not None
    single = tokens.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(single, weight.float()).dtype == torch.bfloat16
    assert linear(tokens.detach(), weight).grad_fn is None


COLLECTORS: dict[str, Callable[[Tensor], Collector]] = {
    **{name: lambda row, rule=rule: RowUpdate(rule, row, centred=False) for name, rule in ELEMENTWISE.items()},
    "centred": lambda row: RowUpdate(ELEMENTWISE["complete"], row, centred=True),
    "a rule of one's own": lambda row: RowUpdate(lambda attention, _: attention * 1.0, row, centred=False),
    "norms": lambda _: HeadNorms(2),
    "rows of heads": RowsOfHeads,
}


def told(collector: Collector) -> list[Tensor]:
    if isinstance(collector, RowsOfHeads):
        return [collector.attention, collector.gradient]
    assert isinstance(collector, RowUpdate | HeadNorms)
    return [collector.result()]


@pytest.mark.parametrize("rows", [[], [0], [0, 1], [12], [4, 5], [0, 12]])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", COLLECTORS)
def test_attention_goes_back_as_if_all_rows_were_walked(
    name: str, causal: bool, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = AttentionCall(*(drawn(2, 3, 13, 4, seed=seed) for seed in range(3)), None, causal, 0.5)
    upstream = torch.zeros(2, 3, 13, 4, dtype=torch.float64)
    upstream[:, :, rows] = drawn(2, 3, len(rows), 4, seed=4)
    answers = []
    for _ in range(2):
        collector = COLLECTORS[name](drawn(2, 13, seed=5))
        flows = attention_backward(call, upstream, collector, through_scores=True, through_value=True)
        answers.append([*flows, *told(collector)])
        monkeypatch.setattr(backward, "reached_rows", all_rows)
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gradient", ["full", "leaf", "libra"])
@pytest.mark.parametrize("method", ["complete", "gae", "absolute", "gmar_l1", "gmar_l2"])
@pytest.mark.parametrize("kernel", ["blocks", "fused"])
def test_maps_are_the_same(method: str, gradient: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["timm_vit"]
    model, images = vitrail.wrap(family.build().double()), family.images(2, dtype=torch.float64)
    monkeypatch.setattr(differentiate, "fused_by_default", lambda _: kernel == "fused")
    maps = []
    for _ in range(2):
        maps.append(vitrail.explain(model, images, [0, 1], method=method, gradient=gradient).scores)
        for module in (reached, backward, differentiate):
            monkeypatch.setattr(module, "reached_rows", all_rows)
    torch.testing.assert_close(*maps, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("family", "fewer"), [("timm_vit", True), ("timm_vit_average", False)])
def test_only_what_is_read_costs(family: str, fewer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block's linear layers are 9 d² of a block's 12 d² for each token, and nearly all of it is saved."""
    model, images = FAMILIES[family].model(), FAMILIES[family].images(2)
    vitrail.explain(model, images, 0)

    def multiplications() -> int:
        with FlopCounterMode(display=False) as counter:
            vitrail.explain(model, images, 0, method="gae", gradient="full")
        return counter.get_total_flops()

    ours = multiplications()
    for module in (reached, backward, differentiate):
        monkeypatch.setattr(module, "reached_rows", all_rows)
    whole = multiplications()
    width = next(module.out_features for module in model.module.modules() if isinstance(module, nn.Linear)) // 3
    tokens = 2 * (model.module.patch_embed.num_patches + 1)
    assert (whole - ours > 0.8 * 2 * 9 * width**2 * tokens) == fewer
    assert (whole == ours) != fewer
