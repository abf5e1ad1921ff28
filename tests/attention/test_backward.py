"""The blockwise backward of attention: against autograd through the written-out form, and by finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.attention import calls
from vitrail.attention.calls import AttentionCall, Block, blocks, from_scaled_dot_product, probabilities
from vitrail.attention.listeners import HeadNorms
from vitrail.attention.relevance_row import (
    RowUpdate,
    absolute,
    attention_backward,
    centre,
    complete,
    constant_attention_backward,
    fused_row,
    positive,
    softmax_backward,
)


def a_call(images=2, heads=3, queries=5, keys=5, width=4, mask=None, causal=False, seed=0) -> AttentionCall:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key, value = (
        draw(images, heads, queries, width),
        draw(images, heads, keys, width),
        draw(images, heads, keys, width),
    )
    return AttentionCall(query, key, value, mask, causal, width**-0.5)


def written_out(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    scores = call.query @ call.key.transpose(-1, -2) * call.scale
    if call.mask is not None:
        scores = scores.masked_fill(~call.mask, -torch.inf) if call.mask.dtype == torch.bool else scores + call.mask
    if call.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    attention = scores.softmax(-1)
    return attention, attention @ call.value


MASKS = {
    "none": None,
    "additive": torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "additive per image": torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
    "boolean": torch.rand(7, 7, generator=torch.Generator().manual_seed(3)) > 0.3,
}


@pytest.mark.parametrize("budget", [1, 16, 10**6], ids=["tiny blocks", "some blocks", "one block"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_equal_autograd(mask, causal, budget, monkeypatch):
    monkeypatch.setattr(calls, "BLOCK_ELEMENTS", {"cpu": budget})
    if MASKS[mask] is not None and MASKS[mask].dtype == torch.bool:
        MASKS[mask].fill_diagonal_(True)
    call = a_call(queries=7, keys=7, mask=MASKS[mask], causal=causal)
    for tensor in (call.query, call.key, call.value):
        tensor.requires_grad_()
    attention, output = written_out(call)
    attention.retain_grad()
    upstream = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    output.backward(upstream)
    row = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    collector = RowUpdate(complete, row, centred=False)
    gradients = attention_backward(call.detached(), upstream, collector, through_scores=True, through_value=True)
    for ours, tensor in zip(gradients, (call.query, call.key, call.value), strict=True):
        torch.testing.assert_close(ours, tensor.grad)
    expected = torch.einsum("bq,bhqk->bk", row, attention.grad * attention) / call.heads
    torch.testing.assert_close(collector.result(), expected.detach())


@pytest.mark.parametrize("budget", [1, 16, 10**6], ids=["tiny blocks", "some blocks", "one block"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("reached", [7, 1], ids=["all rows", "one row"])
def test_constant_attention_goes_back_in_one_product(mask, reached, budget, monkeypatch):
    monkeypatch.setattr(calls, "BLOCK_ELEMENTS", {"cpu": budget})
    call = a_call(queries=7, keys=7, mask=MASKS[mask])
    row, upstream = torch.randn(2, 7, dtype=torch.float64), torch.zeros(2, 3, 7, 4, dtype=torch.float64)
    upstream[:, :, :reached] = torch.randn(2, 3, reached, 4, dtype=torch.float64)
    collector = RowUpdate(complete, row, centred=False)
    _, _, d_value = attention_backward(call, upstream, collector, through_scores=False, through_value=True)
    ours, update = constant_attention_backward(call, upstream, row)
    torch.testing.assert_close(ours, d_value)
    torch.testing.assert_close(update, collector.result())


def test_the_gradient_of_attention_by_finite_differences():
    call = a_call(images=1, heads=1, queries=3, keys=3)
    weights = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    attention = probabilities(call)

    def scalar(a: torch.Tensor) -> torch.Tensor:
        return ((a @ call.value)[0, 0].tanh() * weights).sum()

    upstream = torch.autograd.functional.jacobian(lambda o: (o[0, 0].tanh() * weights).sum(), attention @ call.value)

    class Keep:
        every_row = True

        def begin(self, images, heads, keys, like):
            self.gradient = None

        def add(self, block, attention, gradient):
            self.gradient = gradient.clone()

    keep = Keep()
    attention_backward(call, upstream, keep, through_scores=False, through_value=False)
    step = 1e-6
    for i in range(3):
        for j in range(3):
            moved = torch.zeros_like(attention)
            moved[0, 0, i, j] = step
            slope = (scalar(attention + moved) - scalar(attention - moved)) / (2 * step)
            assert float(keep.gradient[0, 0, i, j]) == pytest.approx(float(slope), abs=1e-8)


@pytest.mark.parametrize(("rule", "literal"), [
    (complete, lambda a, g: g * a),
    (positive, lambda a, g: torch.where(g > 0, g * a, 0 * a)),
    (absolute, lambda a, g: (g * a).abs()),
])  # fmt: skip
@pytest.mark.parametrize("centred", [False, True])
def test_row_update_is_the_formula(rule, literal, centred):
    a = torch.rand(2, 3, 4, 5, dtype=torch.float64).softmax(-1)
    g = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    row = torch.randn(2, 4, dtype=torch.float64)
    update = RowUpdate(rule, row, centred)
    update.begin(2, 3, 5, a)
    for rows in (slice(0, 1), slice(1, 4)):
        update.add(Block(slice(0, 2), slice(0, 3), rows), a[:, :, rows], g[:, :, rows].clone())
    if centred:
        g = g - (a * g).sum(-1, keepdim=True)
    torch.testing.assert_close(update.result(), torch.einsum("bq,bhqk->bk", row, literal(a, g)) / 3)


def test_centred_rows_sum_to_zero():
    a = torch.randn(1, 2, 3, 6, dtype=torch.float64).softmax(-1)
    g = torch.randn(1, 2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close((centre(a, g) * a).sum(-1), torch.zeros(1, 2, 3, dtype=torch.float64))
    torch.testing.assert_close(softmax_backward(a, g), centre(a, g) * a)


@pytest.mark.parametrize("order", [1, 2])
def test_head_norms(order):
    g = torch.randn(2, 3, 4, 5)
    norms = HeadNorms(order)
    norms.begin(2, 3, 5, g)
    for rows in (slice(0, 3), slice(3, 4)):
        norms.add(Block(slice(0, 2), slice(0, 3), rows), g[:, :, rows].abs(), g[:, :, rows])
    torch.testing.assert_close(norms.result(), g.norm(p=order, dim=(2, 3)))


def test_the_fused_form_needs_no_map():
    call = a_call()
    row = torch.randn(2, 5, dtype=torch.float64)
    upstream = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    attention = probabilities(call)
    d_value = attention.transpose(-1, -2) @ (row[:, None, :, None] * upstream)
    gradient = upstream @ call.value.transpose(-1, -2)
    expected = torch.einsum("bq,bhqk->bk", row, gradient * attention) / 3
    torch.testing.assert_close(fused_row(call.value, d_value), expected)


@given(
    images=st.integers(1, 4),
    heads=st.integers(1, 5),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    budget=st.integers(1, 2000),
)
def test_blocks_tile_the_call(images, heads, queries, keys, budget):
    call = AttentionCall(
        torch.empty(images, heads, queries, 1), *[torch.empty(images, heads, keys, 1)] * 2, None, False, 1.0
    )
    seen = torch.zeros(images, heads, queries, dtype=torch.int)
    before = calls.BLOCK_ELEMENTS
    calls.BLOCK_ELEMENTS = {"cpu": budget, "cuda": budget}
    try:
        for block in blocks(call):
            seen[block.images, block.heads, block.rows] += 1
    finally:
        calls.BLOCK_ELEMENTS = before
    assert (seen == 1).all()


def test_a_row_whose_keys_are_all_masked_is_zero():
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    attention = probabilities(a_call(mask=mask))
    assert attention[:, :, 2].abs().max() == 0
    torch.testing.assert_close(attention.sum(-1)[:, :, [0, 1, 3, 4]], torch.ones(2, 3, 4, dtype=torch.float64))


def test_merged_heads_and_grouped_queries_are_told_apart():
    merged = from_scaled_dot_product(2, *(torch.randn(6, 5, 4) for _ in range(3)), attn_mask=torch.zeros(6, 5, 5))
    assert merged.query.shape == (2, 3, 5, 4)
    assert merged.mask is not None
    assert merged.mask.shape == (2, 3, 5, 5)
    grouped = from_scaled_dot_product(
        2, torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8), enable_gqa=True
    )
    assert grouped.key.shape == (2, 4, 5, 8)
    assert grouped.scale == pytest.approx(8**-0.5)


def test_a_mask_of_three_dimensions_is_one_per_head_as_in_pytorch():
    query, mask = torch.randn(3, 3, 5, 4), torch.randn(3, 5, 5)
    call = from_scaled_dot_product(3, query, query, query, attn_mask=mask)
    plain = torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    torch.testing.assert_close(call.output(), plain)
    torch.testing.assert_close(probabilities(call) @ query, plain)


def test_keys_shared_by_broadcasting():
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 1, 5, 8)
    call = from_scaled_dot_product(2, query, key, key)
    assert call.key.shape == (2, 4, 5, 8)


def test_autocast_does_not_reach_into_the_engine():
    call = a_call()
    single = AttentionCall(call.query.float(), call.key.float(), call.value.float(), None, False, call.scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert probabilities(single).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    call = a_call(queries=60, keys=60)
    half = AttentionCall(call.query.to(dtype), call.key.to(dtype), call.value.to(dtype), None, False, call.scale)
    row = torch.randn(2, 60)
    update = RowUpdate(complete, row, centred=False)
    upstream = torch.randn(2, 3, 60, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = attention_backward(half, upstream, update, through_scores=True, through_value=True)
    assert all(gradient is not None and gradient.dtype == dtype for gradient in gradients)
    # The inputs are rounded, the sums are not: against float64 on the same rounded inputs only float32 error is left.
    exact = AttentionCall(half.query.double(), half.key.double(), half.value.double(), None, False, call.scale)
    expected = RowUpdate(complete, row.double(), centred=False)
    attention_backward(exact, upstream.double(), expected, through_scores=False, through_value=False)
    assert update.result().dtype == torch.float32
    torch.testing.assert_close(update.result().double(), expected.result(), rtol=1e-4, atol=1e-5)
