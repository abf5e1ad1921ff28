"""A map is the sum of its heads' shares, and its growth is what `start_layer` gives."""

import pytest
import torch

import vitrail
from vitrail.errors import ImageError
from vitrail.shares import head_shares


@pytest.fixture(scope="module")
def vit():
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=10).eval().double()
        image = torch.randn(1, 3, 160, 160, dtype=torch.float64)
    return model, image


@pytest.mark.parametrize("gradient", ["full", "leaf", "libra", None])
@pytest.mark.parametrize("against", [None, 7])
def test_the_shares_add_up_to_the_map(vit, gradient, against):
    model, image = vit
    found = head_shares(model, image, 3, against=against, gradient=gradient)
    whole = vitrail.explain(model, image, 3, against=against, gradient=gradient).scores[0]
    torch.testing.assert_close(found.scores.sum(dim=(0, 1)), whole, rtol=1e-10, atol=1e-14)


def test_the_growth_is_the_map_from_each_layer(vit):
    model, image = vit
    growth = head_shares(model, image, 3, gradient="full").growth()
    for layer, one in enumerate(growth):
        torch.testing.assert_close(one, vitrail.explain(model, image, 3, gradient="full", start_layer=layer).scores[0])


def test_each_share_is_the_literal_product(vit):
    """(1/H) r · (∇A_h ⊙ A_h) from whole maps, layer after layer; and the weights from ‖∇A_h‖₁."""
    from vitrail.attention.record import DenseRecorder
    from vitrail.attention.tap import Tap

    model, image = vit
    found = head_shares(model, image, 3, gradient="full")
    recorder = DenseRecorder()
    with Tap(recorder, images=1):
        logits = model(image)
    gradients = recorder.gradients(logits[0, 3])
    prefix = recorder.maps[0].shape[-1] - 100
    row = torch.zeros(prefix + 100, dtype=torch.float64)
    row[0] = 1
    for layer in reversed(range(len(recorder.maps))):
        attention, gradient = recorder.maps[layer][0], gradients[layer][0]
        heads = len(attention)
        shares = torch.stack([row @ (gradient[h] * attention[h]) / heads for h in range(heads)])
        expected = shares[:, prefix:].reshape(heads, 10, 10)
        torch.testing.assert_close(found.scores[layer], expected.detach(), rtol=1e-9, atol=1e-14)
        norms = gradient.abs().sum(dim=(1, 2))
        torch.testing.assert_close(found.weights[layer], norms / norms.sum())
        row = row + shares.sum(dim=0)


def test_several_images_are_refused(vit):
    model, image = vit
    with pytest.raises(ImageError, match="2 images are given"):
        head_shares(model, image.expand(2, -1, -1, -1), 3)
