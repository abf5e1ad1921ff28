"""Memory that really runs out: an allocation that no machine can grant, in the forward and in the backward pass."""

import logging
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitrail
from vitrail.guidance.guided import logits_of
from vitrail.memory import in_passes
from vitrail.models import VisionModel
from vitrail.models.readiness import ran_out

ROOM = 3  # images; for more, memory is asked for that nobody has


def exhaust() -> None:
    torch.empty(2**60)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor) -> Tensor:
        return tokens.view_as(tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if len(grads[0]) > ROOM:
            exhaust()
        return grads[0]


class Small(nn.Module):
    """A ViT for which memory runs out in the forward pass, or half-way through the backward pass."""

    def __init__(self, module: nn.Module, where: str) -> None:
        super().__init__()
        self.module, self.where = module, where
        self.passes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.passes.append(len(images))
        if self.where == "forward" and len(images) > ROOM:
            exhaust()
        handle = None
        if self.where == "backward":
            middle = self.module.get_submodule("blocks.3")
            handle = middle.register_forward_pre_hook(lambda _, args: (_Backward.apply(args[0]), *args[1:]))
        try:
            return self.module(images)
        finally:
            if handle is not None:
                handle.remove()


def small(where: str = "forward") -> VisionModel:
    torch.manual_seed(0)
    return vitrail.wrap(Small(timm.create_model("test_vit", num_classes=10, img_size=64), where).eval())


IMAGES = torch.randn(7, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_the_fault_is_real() -> None:
    with pytest.raises(RuntimeError) as error:
        exhaust()
    assert ran_out(error.value)
    with pytest.raises(RuntimeError) as error:
        torch.zeros(2) @ torch.zeros(3)
    assert not ran_out(error.value)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("size", [None, pytest.param(7, marks=pytest.mark.slow), 4])
def test_nothing_is_lost_when_memory_runs_out(where: str, size: int | None, caplog: pytest.LogCaptureFixture) -> None:
    model = small(where)
    module = model.module
    assert isinstance(module, Small)
    undisturbed = vitrail.explain(model, IMAGES, list(range(7)), method="gae", batch_size=ROOM)
    fresh = small(where)
    with caplog.at_level(logging.WARNING, "vitrail"):
        found = vitrail.explain(fresh, IMAGES, list(range(7)), method="gae", batch_size=size)
    most = 2 if size == 4 else 3
    assert f"memory ran out: {most} images at a time from here on" in caplog.text
    # Other sizes of passes round otherwise.
    torch.testing.assert_close(found.scores, undisturbed.scores, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.logits, undisturbed.logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        found.scores, vitrail.explain(small(where), IMAGES, list(range(7)), method="gae", batch_size=most).scores
    )


def test_what_ran_out_once_is_not_tried_again() -> None:
    model = small()
    module = model.module
    assert isinstance(module, Small)
    vitrail.explain(model, IMAGES, 1)
    module.passes.clear()
    vitrail.explain(model, IMAGES, 2)
    assert module.passes == [3, 3, 1]


def test_class_competition_goes_on_too() -> None:
    found = vitrail.explain(small(), IMAGES)
    expected = vitrail.explain(small(), IMAGES, batch_size=2)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-7)
    assert torch.equal(found.rivals.classes, expected.rivals.classes)
    assert len(logits_of(small(), IMAGES, 7)) == 7


def test_a_single_image_that_does_not_fit_is_an_error() -> None:
    def ask(rows: slice) -> None:
        exhaust()

    with pytest.raises(RuntimeError, match="allocate memory"):
        list(in_passes(ask, 4))


def test_other_errors_are_raised_at_once() -> None:
    asked = []

    def ask(rows: slice) -> None:
        asked.append(rows)
        raise RuntimeError("shapes disagree")

    with pytest.raises(RuntimeError, match="shapes disagree"):
        list(in_passes(ask, 4))
    assert len(asked) == 1
