"""Heads that are no classifier: `logits_from=` takes a scalar out of the output, and the map is that of the scalar.

Held against products of dense float64 matrices, made from attention maps and gradients captured by `reference`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
import two_streams
from families import enliven
from torch import Tensor, nn

import vitrail

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


class Head(nn.Module):
    """What the reference runs: the module, and the scalars read from its output."""

    def __init__(self, module: nn.Module, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module, self.read = module, read

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.module(images))


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build().eval()
        enliven(module)
    return module.double()


def picture(size: int = 64) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def blocks(module: nn.Module, read: Callable[[Any], Tensor], image: Tensor, target: int) -> list[Tensor]:
    """E_h[∇A_h ⊙ A_h] of every attention, in the order of the calls."""
    captured = reference.capture(Head(module, read), image)
    gradients = captured.gradients(captured.logits[0, target])
    return [(a * g).mean(dim=1)[0].detach() for a, g in zip(captured.maps, gradients, strict=True)]


def chain(products: list[Tensor]) -> Tensor:
    total = torch.eye(products[0].shape[-1], dtype=torch.float64)
    for product in products:
        total = total + product @ total
    return total


def yolos() -> nn.Module:
    config = transformers.YolosConfig(image_size=[64, 64], num_detection_tokens=5, num_labels=4, **SMALL)
    return transformers.YolosForObjectDetection(config)


def dinov2() -> nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(image_size=64, patch_size=16, **SMALL))


def test_a_query_of_yolos():
    module, image = drawn(yolos), picture()

    def second(output: Any) -> Tensor:
        return output.logits[:, 2]

    ex = vitrail.explain(vitrail.wrap(module, logits_from=second), image, 1, gradient="full")
    # The class token, 16 patches, then five detection tokens: the third of these answers.
    expected = chain(blocks(module, second, image, 1))[1 + 16 + 2, 1:17]
    torch.testing.assert_close(ex.scores.flatten(), expected, rtol=1e-9, atol=1e-14)


def test_likeness_to_another_image():
    module, image = drawn(dinov2), picture()
    with torch.no_grad():
        other = module(torch.flip(image, (3,)).exp()).pooler_output

    def likeness(output: Any) -> Tensor:
        return torch.nn.functional.cosine_similarity(output.pooler_output, other, dim=-1)[:, None]

    ex = vitrail.explain(vitrail.wrap(module, logits_from=likeness, output="scores"), image, 0, gradient="full")
    expected = chain(blocks(module, likeness, image, 0))[0, 1:]
    torch.testing.assert_close(ex.scores.flatten(), expected, rtol=1e-9, atol=1e-14)


def test_a_query_of_detr_through_the_cross_attention_of_its_decoder():
    module, _ = two_streams.detr()
    module.double()
    image = picture()

    def second(output: Any) -> Tensor:
        return output.logits[:, 2]

    ex = vitrail.explain(vitrail.wrap(module, logits_from=second), image, 1, gradient="full")
    products = blocks(module, second, image, 1)
    layers = module.config.encoder_layers
    encoder = chain(products[:layers])
    queries = torch.zeros(products[layers].shape[-1], len(encoder), dtype=torch.float64)  # no query is a patch
    for own, cross in zip(products[layers::2], products[layers + 1 :: 2], strict=True):
        queries = queries + own @ queries
        queries = queries + cross @ encoder
    torch.testing.assert_close(ex.scores.flatten(), queries[2], rtol=1e-9, atol=1e-14)
