"""The rules for two streams against the authors' own numbers, and where the authors' division fails."""

import numpy as np
import pytest
import torch

from vitrail.multimodal import averaged_heads, cross_attention, rescaled, self_attention
from vitrail.multimodal.dependence import depends_on
from vitrail.multimodal.propagate import Asked, propagate


@pytest.fixture(scope="module")
def oracle(shared):
    with np.load(shared / "oracles" / "bimodal_rules.npz") as file:
        return {name: torch.from_numpy(file[name])[None] for name in file.files}


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    assert ours.dtype == torch.float64
    return float((ours - expected).abs().max() / expected.abs().max())


def less_identity(full: torch.Tensor) -> torch.Tensor:
    return full - torch.eye(full.shape[-1], dtype=full.dtype)


def test_averaged_heads_are_the_authors(oracle):
    for streams in ("sq", "ss"):
        ours = averaged_heads(oracle[f"in/A_{streams}"], oracle[f"in/G_{streams}"])
        assert relative(ours, oracle[f"avg_heads_{streams}"]) < 1e-12


def test_self_attention_is_the_authors(oracle):
    ours = self_attention(oracle["avg_heads_ss"], less_identity(oracle["in/R_ss"]), oracle["in/R_sq"])
    assert relative(ours[0], oracle["self/R_ss_add"]) < 1e-12
    assert relative(ours[1], oracle["self/R_sq_add"]) < 1e-12


@pytest.mark.parametrize("stream", ["R_ss", "R_qq"])
def test_rescaling_is_the_authors(oracle, stream: str):
    assert relative(rescaled(less_identity(oracle[f"in/{stream}"])), oracle[f"handle_residual/{stream}"]) < 1e-12


@pytest.mark.parametrize(("kind", "normalise"), [("default", True), ("no_norm", False)])
def test_cross_attention_is_the_authors(oracle, kind: str, normalise: bool):
    own, other = less_identity(oracle["in/R_ss"]), less_identity(oracle["in/R_qq"])
    added, cross = cross_attention(oracle["avg_heads_sq"], own, other, oracle["in/R_qs"], normalise)
    assert relative(added, oracle[f"mm_lxmert_{kind}/R_ss_add"]) < 1e-12
    assert relative(cross, oracle[f"mm_lxmert_{kind}/R_sq_add"]) < 1e-12
    assert relative(cross, oracle[f"mm_detr_{kind}/R_sq_add"]) < 1e-12


def test_where_the_authors_divide_zero_by_zero_the_row_stays_the_identity(oracle):
    official = oracle["handle_residual/zero_rows_out_with_nan"]
    ours = rescaled(less_identity(oracle["handle_residual/zero_rows_in"]))
    empty = official.isnan().any(dim=-1)[0]
    assert int(empty.sum()) == 6
    identity = torch.eye(7, dtype=torch.float64)
    assert torch.equal(ours[0, empty], identity[empty])
    torch.testing.assert_close(ours[0, ~empty], official[0, ~empty], rtol=1e-12, atol=1e-8)


def test_signed_rows_are_divided_by_the_sum_of_sizes():
    added = torch.tensor([[[1.0, -1.0, 0.0], [-1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    expected = [[1.5, -0.5, 0.0], [-1 / 3, 1 - 2 / 3, 0.0], [0.0, 0.0, 1.0]]
    torch.testing.assert_close(rescaled(added), torch.tensor([expected], dtype=torch.float64), rtol=1e-5, atol=1e-8)


def test_rescaling_does_not_hang_on_the_size_of_what_was_added():
    added = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    small = rescaled(added * 1e-12)  # beside the ones of the identity, float32 would have lost it
    torch.testing.assert_close(small, rescaled(added), rtol=1e-5, atol=1e-8)


def test_the_two_directions_of_a_layer_read_the_old_maps():
    generator = torch.Generator().manual_seed(0)
    first, there, back = (torch.rand(1, *size, generator=generator) for size in ((2, 2), (2, 3), (3, 2)))
    before = Asked("text", "text", first)
    one = Asked("text", "image", there, frozenset({0}))
    beside = propagate([before, one, Asked("image", "text", back, frozenset({0}))], {"text": 2, "image": 3})
    one_after = propagate([before, one, Asked("image", "text", back, frozenset({0, 1}))], {"text": 2, "image": 3})
    zeros = torch.zeros(1, 3, 3)
    expected = cross_attention(back, zeros, first, torch.zeros(1, 2, 3))
    assert torch.equal(beside["image"].cross, expected[1])
    assert torch.equal(beside["image"].added, expected[0])
    assert torch.equal(beside["text"].added, one_after["text"].added)
    later = cross_attention(back, zeros, beside["text"].added, beside["text"].cross)
    torch.testing.assert_close(one_after["image"].added, later[0], rtol=1e-5, atol=1e-8)
    assert not torch.allclose(beside["image"].added, one_after["image"].added)


def test_dependence_is_read_from_the_graph():
    a = torch.rand(3, requires_grad=True)
    b = torch.rand(3, requires_grad=True)
    c = (a * 2).exp()
    d = b + 1
    e = c * d
    assert depends_on([a, b, c, d, e]) == [
        frozenset(),
        frozenset(),
        frozenset({0}),
        frozenset({1}),
        frozenset({0, 1, 2, 3}),
    ]
