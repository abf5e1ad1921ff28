"""The plan foretells what explaining takes: against the allocator's own account, on real tiny models."""

import dataclasses
import importlib

import pytest
import timm
import torch

import vitrail
from vitrail.errors import NotEnoughMemoryError, OptionError, TrainingModeError, UnknownMethodError
from vitrail.models import VisionModel

MODULE = importlib.import_module("vitrail.plan")  # vitrail.plan itself is the function

SIZES = {160: (160, 160), 288: (288, 288)}


def tiny(size: int) -> VisionModel:
    torch.manual_seed(0)
    return vitrail.wrap(timm.create_model("test_vit", num_classes=10, img_size=size).eval())


def allocated(model: VisionModel, size: int, batch: int, **question) -> int:
    """The most that PyTorch's allocator had given out at once, temporaries within its operations included."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(2))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        vitrail.explain(model, images, 3, batch_size=batch, **question)
    live = most = 0
    for event in profile.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


@pytest.mark.parametrize(
    ("method", "size"),
    [("gae", 160), *(pytest.param(name, 288, marks=pytest.mark.slow) for name in ("complete", "gmar_l2"))],
)
def test_the_peak_is_foretold(method: str, size: int) -> None:
    model = tiny(size)
    plan = vitrail.plan(model, method=method, size=SIZES[size], batch=6)
    assert plan.peak / allocated(model, size, 6, method=method) == pytest.approx(1, abs=0.3)
    assert plan.first / allocated(model, size, 1, method=method) == pytest.approx(1, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rollout", "dix", "legrad", "gradcam", "bi_token", "lrp", "attn_lrp", "libra"])
def test_the_peak_of_other_methods_within_a_factor_of_two(method: str) -> None:
    question = {"gradient": "libra"} if method == "libra" else {"method": method}
    model = tiny(288)
    plan = vitrail.plan(model, size=(288, 288), batch=6, **question)
    assert 0.5 < plan.peak / allocated(model, 288, 6, **question) < 2


@pytest.mark.slow
def test_more_images_and_more_pixels_take_more() -> None:
    plans = [vitrail.plan(tiny(size), size=SIZES[size], batch=2) for size in SIZES]
    for plan in plans:
        peaks = [plan.peak_of(images) for images in range(1, 20)]
        assert peaks == sorted(peaks)
        assert plan.first == peaks[0]
        assert plan.peak == peaks[1]
        assert plan.each > 0
        assert 0 < plan.seconds < 60
        assert plan.seconds_per_image == plan.seconds / 2
    more = plans[1].each / plans[0].each
    tokens = [(side // 16) ** 2 + 1 for side in SIZES]
    assert 0.75 * tokens[1] / tokens[0] < more < (tokens[1] / tokens[0]) ** 2


@pytest.mark.slow
def test_the_batch_is_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(64)
    asked = vitrail.plan(model, size=(64, 64), batch=3)
    assert (asked.batch, asked.fits, asked.free > 2**26) == (3, True, True)
    assert vitrail.plan(model, size=(64, 64), most=5).batch == 5
    monkeypatch.setattr(MODULE, "free_memory", lambda device: round(asked.peak_of(7) / 0.495))
    assert vitrail.plan(model, size=(64, 64)).batch == 7
    too_many = vitrail.plan(model, size=(64, 64), batch=20)
    assert (too_many.batch, too_many.fits) == (20, False)


@pytest.mark.slow
def test_the_model_is_left_alone_and_the_plan_cannot_be_changed() -> None:
    model = tiny(64)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.module.parameters()]
    plan = vitrail.plan(model, size=(64, 64), batch=1, targets=3)
    assert plan.targets == 3
    assert plan.weights == sum(tensor.nbytes for tensor in before.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert wanted == [parameter.requires_grad for parameter in model.module.parameters()]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.batch = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_competition_is_planned_for() -> None:
    model = vitrail.wrap(timm.create_model("test_vit", num_classes=10, img_size=64).eval())
    own, full = (vitrail.plan(model, size=(64, 64), batch=2, gradient=mode) for mode in (None, "full"))
    assert (own.gradient, own.competes) == ("libra", True)
    assert (full.gradient, full.competes) == ("full", False)
    assert vitrail.plan(model, method="gae", size=(64, 64), batch=2).gradient == "full"


def test_an_image_that_cannot_fit_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "free_memory", lambda device: 2**20)
    model = tiny(160)
    with pytest.raises(NotEnoughMemoryError, match=r"one image of 160×160 pixels needs \d+ MiB .* and 1 MiB are free"):
        vitrail.plan(model, size=(160, 160), gradient="full")
    with pytest.raises(OptionError, match="targets=0 must be 1 or more"):
        vitrail.plan(model, size=(160, 160), targets=0)
    with pytest.raises(OptionError, match="its input size is not known: give size="):
        vitrail.plan(dataclasses.replace(model, preprocess=None))
    with pytest.raises(UnknownMethodError):
        vitrail.plan(model, method="nope", size=(160, 160))
    with pytest.raises(TrainingModeError):
        vitrail.plan(timm.create_model("test_vit", drop_rate=0.1).train(), size=(160, 160))
