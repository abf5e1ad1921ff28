"""Aᵀ X by a forward pass with queries and keys in each other's place: against the matrix written out in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitrail
from vitrail.attention import differentiate, kernels
from vitrail.attention.calls import AttentionCall
from vitrail.attention.differentiate import swaps
from vitrail.attention.kernels import attention_transposed


def a_call(
    images=2, heads=3, queries=17, keys=17, width=8, dtype=torch.float64, scale=0.4, seed=0, causal=False
) -> AttentionCall:
    generator = torch.Generator().manual_seed(seed)
    # As models have them: heads lie within the tokens in memory.
    query, key, value = (
        torch.randn(images, count, heads, width, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for count in (queries, keys, keys)
    )
    return AttentionCall(query, key, value, None, causal, scale)


def literal(call: AttentionCall, rows: torch.Tensor) -> torch.Tensor:
    scores = call.scale * torch.einsum("bhic,bhjc->bhij", call.query.double(), call.key.double())
    if call.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    attention = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return torch.einsum("bhij,bhic->bhjc", attention, rows.double()).detach()


@settings(deadline=None)
@given(
    images=st.integers(1, 3),
    heads=st.integers(1, 4),
    queries=st.integers(1, 80),
    keys=st.integers(1, 80),
    width=st.integers(1, 40),
    scale=st.floats(0.01, 2),
    causal=st.booleans(),
)
def test_any_shape(images, heads, queries, keys, width, scale, causal):
    keys = queries if causal else keys
    call = a_call(images, heads, queries, keys, width, scale=scale, seed=queries, causal=causal)
    rows = torch.randn(images, heads, queries, width, generator=torch.Generator().manual_seed(keys)).double()
    found = attention_transposed(call.detached(), call.output(), rows)
    assert found is not None
    torch.testing.assert_close(found, literal(call, rows), rtol=1e-9, atol=1e-9)


def test_sharp_attention_in_float32():
    """Scores of many hundreds: a column that nobody attends to has a sum of exp(−many hundreds), zero in float32."""
    call = a_call(keys=40, queries=40, width=64, dtype=torch.float32, scale=10.0)
    rows = torch.randn(2, 3, 40, 64, generator=torch.Generator().manual_seed(1))
    found = attention_transposed(call.detached(), call.output(), rows)
    assert found is not None
    assert found.isfinite().all()
    torch.testing.assert_close(found, literal(call, rows).float(), rtol=0, atol=1e-4)


def test_what_is_kept_by_another_name_is_not_believed(monkeypatch, caplog):
    call = a_call()
    output = call.output()
    kept = kernels._kept(call, output)
    monkeypatch.setattr(kernels, "_kept", lambda *_: kept / 0.7)
    monkeypatch.setattr(kernels, "_AS_MEANT", {})
    assert attention_transposed(call.detached(), output, torch.ones_like(output)) is None
    assert "keeps something else than the scores' logsumexp" in caplog.text


def test_an_answer_of_another_kernel_keeps_nothing():
    call = a_call()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        output = call.output()
    assert attention_transposed(call.detached(), output, torch.ones_like(output)) is None


@pytest.mark.parametrize(
    "unfit",
    [
        {"keys": differentiate.FROM_KEYS - 1},
        {"dtype": torch.bfloat16},
        {"keys": differentiate.FROM_KEYS + 1, "causal": True},
    ],
)
def test_what_it_does_not_serve(unfit):
    assert swaps(a_call(1, 1, differentiate.FROM_KEYS, **{"keys": differentiate.FROM_KEYS, **unfit})) is False


@pytest.mark.parametrize("gradient", ["full", "leaf", "libra"])
@pytest.mark.parametrize("targets", [[3], [3, 5]])
def test_a_picture_of_many_patches(gradient, targets, monkeypatch):
    """529 patches: by itself the engine goes this way, and gives the map of the blocks."""
    import timm

    from vitrail.attention.differentiate import DifferentiatedAttention

    torch.manual_seed(0)
    model = vitrail.wrap(timm.create_model("test_vit", img_size=368, num_classes=7).eval().double())
    images = torch.randn(1, 3, 368, 368, dtype=torch.float64)
    taken = []
    plain = differentiate.attention_transposed
    monkeypatch.setattr(differentiate, "attention_transposed", lambda *a: taken.append(1) or plain(*a))
    swapped_maps = vitrail.explain(model, images, [targets], gradient=gradient).scores
    # Not the last: of its queries, the gradient of a class reaches the readout's alone, and blocks are the quicker.
    assert len(taken) == (len(model.module.blocks) - 1) * len(targets)
    taken.clear()
    monkeypatch.setattr(DifferentiatedAttention, "__init__", _by_blocks(DifferentiatedAttention.__init__))
    blocks = vitrail.explain(model, images, [targets], gradient=gradient).scores
    assert not taken
    torch.testing.assert_close(swapped_maps, blocks, rtol=0, atol=1e-11 * float(blocks.abs().max()))


def _by_blocks(init):
    def with_blocks(self, listener, gradient, start_layer=0, kernel="auto", *rest):
        del kernel
        init(self, listener, gradient, start_layer, "blocks", *rest)

    return with_blocks
