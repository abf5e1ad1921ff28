"""The one look at a model: what it keeps in memory meanwhile, and that it goes by the graph and not by the numbers."""

from weakref import WeakSet

import pytest
import torch
from families import FAMILIES
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from vitrail.attention.differentiate import DifferentiatedAttention
from vitrail.attention.observe import ShapeObserver
from vitrail.attention.relevance_row import RelevanceRow
from vitrail.attention.tap import Tap, Visitor


class _Kept:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def bytes_kept(module: nn.Module, images: torch.Tensor, visitor: Visitor) -> int:
    """What autograd still holds for a backward once the logits are there; each piece of memory counts once."""
    alive: WeakSet[_Kept] = WeakSet()

    def keep(tensor: torch.Tensor) -> _Kept:
        kept = _Kept(tensor)
        alive.add(kept)
        return kept

    with saved_tensors_hooks(keep, lambda kept: kept.tensor), Tap(visitor, len(images)):
        logits = module(images)
    assert logits.requires_grad
    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    storages = {kept.tensor.untyped_storage() for kept in alive}
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in weights}.values())


@pytest.mark.parametrize("name", ["timm_vit", "timm_dinov2_registers"])
def test_a_look_keeps_less_than_an_explanation(name):
    module, images = FAMILIES[name].build(), FAMILIES[name].images(1)
    look = bytes_kept(module, images, ShapeObserver())
    explanation = bytes_kept(module, images, DifferentiatedAttention(RelevanceRow("positive"), "full"))
    assert 0 < look < 0.8 * explanation


def test_what_depends_by_a_gradient_of_zero_still_follows():
    """A gate that happens to be shut cuts no path: the second attention follows from the first."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

        def forward(self, x):
            x = self.first(x, x, x, need_weights=False)[0] * 0
            return (x + self.second(x, x, x, need_weights=False)[0])[:, 0]

    observer = ShapeObserver()
    with Tap(observer, 1) as tap:
        logits = Gated().eval()(torch.randn(1, 5, 8))
    assert len(observer.observation(logits, tuple(tap.patch_grids)).shapes) == 2
