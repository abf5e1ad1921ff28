"""GMAR's options against their formulas, written out on whole matrices."""

import pytest
import torch
from families import FAMILIES
from linear_patches import LinearPatches

import vitrail
from vitrail.attention.record import DenseRecorder
from vitrail.attention.tap import Tap
from vitrail.errors import NoSignalError, OptionError
from vitrail.methods.gmar import head_weights

TARGET = 3


@pytest.fixture(scope="module")
def module():
    return FAMILIES["timm_vit"].build().double()


@pytest.fixture(scope="module")
def images():
    return FAMILIES["timm_vit"].images(2).double()


@pytest.fixture(scope="module")
def whole(module, images):
    """A and ∇A of every layer."""
    recorder = DenseRecorder()
    with Tap(recorder, 2):
        scalar = module(images)[:, TARGET].sum()
    gradients = recorder.gradients(scalar)
    return [a.detach() for a in recorder.maps], gradients


def weights_of(gradient: torch.Tensor, p: int) -> torch.Tensor:
    norms = gradient.norm(p=p, dim=(2, 3))
    return norms / norms.sum(1, keepdim=True)


def fuse(attention, weights, discard=0.0):
    fused = torch.einsum("bh,bhqk->bqk", weights, attention)
    if discard:
        for image in fused:
            flat = image.flatten()
            flat[flat.argsort()[: int(len(flat) * discard)]] = 0
    return fused


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.25},
        {"alpha": 0.0},
        {"order": "right"},
        {"residual": "paper", "alpha": 0.25},
        {"residual": "paper", "order": "right", "alpha": 0.25},
        {"shared_weights": True},
        {"discard_ratio": 0.5},
        {"discard_ratio": 0.5, "residual": "paper"},
        {"discard_ratio": 0.5, "residual": "paper", "order": "right"},
    ],
    ids=str,
)
def test_options_are_their_formulas(module, images, whole, p, options):
    maps, gradients = whole
    alpha = options.get("alpha", 1.0)
    eye = torch.eye(maps[0].shape[-1], dtype=torch.float64)
    total = eye.expand(2, -1, -1)
    for attention, gradient in zip(maps, gradients, strict=True):
        source = gradients[-1] if options.get("shared_weights") else gradient
        fused = fuse(attention, weights_of(source, p), options.get("discard_ratio", 0.0))
        left = options.get("order", "left") == "left"
        if options.get("residual") == "paper":
            total = (fused @ total if left else total @ fused) + alpha * eye
        else:
            factor = fused + alpha * eye
            factor = factor / factor.sum(-1, keepdim=True)
            total = factor @ total if left else total @ factor
    expected = total[:, 0, 1:].reshape(2, 4, 4)
    ours = vitrail.explain(module, images, TARGET, method=f"gmar_l{p}", **options)
    torch.testing.assert_close(ours.scores, expected)


@pytest.mark.parametrize("p", [1, 2])
def test_weights_from_the_last_norm(module, images, whole, p):
    maps, _ = whole
    caught = []
    handle = module.blocks[-1].norm1.register_forward_hook(lambda *args: caught.append(args[-1]))
    logit = module(images)[:, TARGET].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(logit, [caught[0]])
    groups = gradient[:, 1:].unflatten(2, (3, 16))
    norms = groups.abs().pow(p).sum((1, 3)).pow(1 / p)
    weights = norms / norms.sum(1, keepdim=True)
    eye = torch.eye(17, dtype=torch.float64)
    total = eye.expand(2, -1, -1)
    for attention in maps:
        total = (fuse(attention, weights) + eye) / 2 @ total
    ours = vitrail.explain(module, images, TARGET, method=f"gmar_l{p}", grad_at="last_ln")
    torch.testing.assert_close(ours.scores, total[:, 0, 1:].reshape(2, 4, 4))


def test_alpha_one_with_equal_heads_is_rollout(module, images):
    gmar = vitrail.explain(module, images, TARGET, method="gmar_l2").scores
    rollout = vitrail.explain(module, images, method="rollout").scores
    correlation = torch.corrcoef(torch.stack([gmar.flatten(), rollout.flatten()]))[0, 1]
    assert correlation > 0.9


def test_heads_without_gradient_cannot_be_weighted():
    with pytest.raises(NoSignalError, match="no gradient at attention 2"):
        head_weights(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), 2)


def test_a_model_without_norms_has_no_last_norm():
    with pytest.raises(OptionError, match="calls no layer norm before its last attention"):
        vitrail.explain(LinearPatches(8, 1).eval(), torch.randn(1, 3, 32, 48), 1, method="gmar_l1", grad_at="last_ln")
