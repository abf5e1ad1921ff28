"""How many images go together follows from what the first passes took."""

import pytest
import timm
import torch

import vitrail
from vitrail.memory import Allocations, batch_size, kept_bytes, saved_bytes
from vitrail.models import VisionModel
from vitrail.models.layout import layout_of

IMAGES = torch.randn(9, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> VisionModel:
    torch.manual_seed(0)
    return vitrail.wrap(timm.create_model("test_vit", num_classes=10, img_size=64).eval())


def passes(model: VisionModel, free: int, monkeypatch: pytest.MonkeyPatch, **question) -> list[int]:
    """The sizes of the passes of nine images on a machine with so much memory."""
    monkeypatch.setattr(batch_size, "free_memory", lambda device: free)
    sizes: list[int] = []
    layout_of(model, IMAGES)
    kept_bytes(model, IMAGES[:1])
    handle = model.module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        vitrail.explain(model, IMAGES, 3, **question)
    finally:
        handle.remove()
    return sizes


def test_with_plenty_all_go_at_once(model: VisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(model, 2**34, monkeypatch) == [9]


@pytest.mark.slow
def test_with_little_the_first_passes_tell(model: VisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    layout_of(model, IMAGES)
    with Allocations("cpu") as four:  # `vitrail.plan` would stop at two on a slow machine
        vitrail.explain(model, IMAGES[:4], 3, batch_size=4)
    free = round(four.peak * 1.1 / batch_size.SHARE["cpu"])  # four fit, and five do not
    assert passes(model, free, monkeypatch) == [1, 2, 4, 2]
    assert passes(model, free, monkeypatch) == [4, 4, 1]  # which is remembered
    assert passes(model, 1, monkeypatch) == [1] * 9
    assert passes(model, free, monkeypatch, batch_size=6) == [6, 3]  # who says a number gets it


def test_a_long_list_is_cut_where_more_gain_nothing(model: VisionModel) -> None:
    sizes: list[int] = []
    layout_of(model, IMAGES)
    kept_bytes(model, IMAGES[:1])
    model.module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    vitrail.explain(model, IMAGES.repeat(8, 1, 1, 1)[:70], 3, method="raw")
    assert sizes == [32, 32, 6]


def test_allocations_see_the_backward_pass_and_forget_what_dies() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    with Allocations("cpu") as allocations:
        output = (weight @ weight).exp()  # 80 kB, of which autograd keeps the result of exp
        alive = allocations.live
        (gradient,) = torch.autograd.grad(output.sum(), [weight])
        del output
    assert alive == 40_000
    assert allocations.live == 40_000 == gradient.nbytes
    assert allocations.peak >= 3 * 40_000


def test_saved_bytes_are_those_that_autograd_keeps(model: VisionModel) -> None:
    """Counted without keeping them, against counted while they are kept."""
    module = model.module.requires_grad_(False)
    images = IMAGES[:1].clone().requires_grad_()
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = module(images)
    with Allocations("cpu") as allocations:
        counted = saved_bytes(lambda: module(images), module.parameters())
    assert counted == sum(kept.values()) > 100_000
    assert allocations.peak < counted  # it was never there
    logits.sum().backward()
