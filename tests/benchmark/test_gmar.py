"""What `benchmarks.gmar` measures: the weights of the heads, who is pruned, and what a pruned head leaves."""

import pytest
import torch

import vitrail
from benchmarks.gmar import effective, head_weights, keep_all_but, others_mean, pruned
from vitrail.attention.record import CallRecorder
from vitrail.attention.tap import Tap, eager

IMAGES = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> vitrail.VisionModel:
    return vitrail.load("bestiary")


@pytest.mark.parametrize(("norm", "method"), [("GMAR, L1", "gmar_l1"), ("GMAR, L2", "gmar_l2")])
def test_weights_are_those_of_the_method(model: vitrail.VisionModel, norm: str, method: str) -> None:
    logits, weights = head_weights(model, IMAGES)
    torch.testing.assert_close(logits, model.logits(IMAGES), rtol=1e-4, atol=1e-4)
    recorder = CallRecorder()
    with torch.no_grad(), eager(), Tap(recorder, len(IMAGES)):
        model.logits(IMAGES)
    product = torch.eye(145).expand(2, -1, -1)
    for layer, record in enumerate(recorder.layers):
        mean = (weights[norm][:, layer, :, None, None] * record.probabilities()).sum(dim=1) + torch.eye(145)
        product = mean / mean.sum(dim=-1, keepdim=True) @ product
    ex = vitrail.explain(model, IMAGES, method=method)
    torch.testing.assert_close(ex.scores.flatten(1), product[:, 0, 1:], rtol=1e-4, atol=1e-7)


def test_a_pruned_head_puts_out_nothing(model: vitrail.VisionModel) -> None:
    """Zeros in the columns of the output projection that read the head are the same as pruning it."""
    kept = torch.ones(2, 6, 4, dtype=torch.bool)
    torch.testing.assert_close(pruned(model, IMAGES, kept), model.logits(IMAGES), rtol=1e-4, atol=1e-4)
    kept[:, 2, 1] = False
    other = vitrail.load("bestiary")
    with torch.no_grad():
        other.module.blocks[2].attn.proj.weight[:, 32:64] = 0
    found = pruned(model, IMAGES, kept)
    torch.testing.assert_close(found, other.logits(IMAGES), rtol=1e-4, atol=1e-4)
    assert float((found - model.logits(IMAGES)).detach().abs().max()) > 0.01
    kept[1, 2, 1] = True  # each image has its own heads
    torch.testing.assert_close(pruned(model, IMAGES, kept)[0], found[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pruned(model, IMAGES, kept)[1], model.logits(IMAGES)[1], rtol=1e-4, atol=1e-4)


def test_who_is_kept() -> None:
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    assert keep_all_but(weights, 1).tolist() == [[False, True, True], [True, True, False]]
    assert keep_all_but(weights, 2).tolist() == [[False, True, False], [False, True, False]]
    assert keep_all_but(weights, 1, highest=True).tolist() == [[True, False, True], [False, True, True]]


def test_how_many_heads_count() -> None:
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(effective(weights), torch.tensor([4.0, 1.0, 2.0]))


def test_the_mean_of_the_others_leaves_the_image_out() -> None:
    weights = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.5]]])
    expected = torch.tensor([[[0.25, 0.75]], [[0.75, 0.25]], [[0.5, 0.5]]])
    torch.testing.assert_close(others_mean(weights), expected)
