"""A rewritten picture is what its file says: the class after a round trip, the budget, the refusals."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from families import enliven
from PIL import Image

import vitrail
from vitrail.counterfactual import Rewrite, classify, rewrite, unresized
from vitrail.counterfactual.rewrite import Progress
from vitrail.errors import ImageError, ModelError, NonFiniteError, OptionError, TargetError, UnknownClassError

NAMES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def model() -> vitrail.VisionModel:
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=10).eval()
    enliven(module)
    preprocess = vitrail.Preprocess(size=(64, 64), resize=72, mean=(0.5,) * 3, std=(0.5,) * 3)
    return vitrail.wrap(module, preprocess=preprocess, class_names=NAMES, name="tiny")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    blotches = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.array(Image.fromarray(blotches).resize((160, 120), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def goal(model, photograph) -> int:
    return int(classify(model, photograph).argsort()[-4])


@pytest.mark.parametrize("variant", ["gradient", "sign", "adam"])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_the_file_on_disk_is_the_new_class(model, photograph, goal, variant, suffix, tmp_path):
    result = rewrite(model, photograph, target=goal, until=0.6, variant=variant, method=None)
    assert result.reached
    assert result.reason == "reached"
    answer = classify(model, result.save(tmp_path / f"new.{suffix}")).softmax(dim=0)
    assert answer.argmax() == goal
    assert answer[goal].item() == result.probability >= 0.6
    assert classify(model, photograph).argmax() == result.source
    assert result.picture.shape == photograph.shape
    assert result.curves[0].tolist() == pytest.approx(
        classify(model, photograph).softmax(dim=0)[[result.source, goal]].tolist()
    )
    assert (result.curves[: result.step, 1] < 0.6).all()


def test_a_step_is_the_formula(model, photograph, goal):
    """One step at the model's own size, where nothing is resized, against autograd through plain torch."""
    plain = replace(model, preprocess=replace(model.preprocess, size=(64, 64), resize=None))
    small = np.asarray(model.preprocess.view(Image.fromarray(photograph)))
    result = rewrite(plain, small, target=goal, until=0.999, steps=1, step=0.05, method=None)
    pixels = (torch.from_numpy(small.copy()).permute(2, 0, 1).float() / 255).requires_grad_()
    logits = model.module(((pixels - 0.5) / 0.5)[None])[0]
    (slope,) = torch.autograd.grad(logits[result.source] - logits[goal], pixels)
    expected = (pixels - 0.05 * slope / slope.abs().max()).clamp(0, 1)
    taken = torch.from_numpy(result.picture).permute(2, 0, 1).float()
    assert result.step == 1
    assert (taken - 255 * expected).abs().max() < 0.501


def slope_of(model, picture, goal):
    """The gradient of the target's log-probability by the pixels of a picture of the model's own size."""
    pixels = (torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255).requires_grad_()
    logits = model.module(((pixels - 0.5) / 0.5)[None])
    torch.nn.functional.cross_entropy(logits, torch.tensor([goal])).backward()
    assert pixels.grad is not None
    model.module.zero_grad(set_to_none=True)
    return pixels.detach(), pixels.grad


def test_a_step_within_a_budget_is_that_of_projected_gradient_descent(model, photograph, goal):
    """Targeted PGD (Madry et al. 2018), at the model's own size: whole levels in L∞, a fixed length in L2."""
    plain = replace(model, preprocess=replace(model.preprocess, size=(64, 64), resize=None))
    small = np.asarray(model.preprocess.view(Image.fromarray(photograph)))
    pixels, slope = slope_of(model, small, goal)
    common = {"target": goal, "until": 0.999, "steps": 1, "method": None}
    linf = rewrite(plain, small, budget=8 / 255, **common)
    expected = (pixels - 2 / 255 * slope.sign()).clamp(0, 1) * 255
    assert torch.equal(torch.from_numpy(linf.picture).permute(2, 0, 1), expected.round().to(torch.uint8))
    how = ("objective", "variant", "step_size", "step_norm")
    assert [linf.metadata[name] for name in how] == ["log_probability", "sign", 2 / 255, "linf"]
    l2 = rewrite(plain, small, budget=12.0, norm="l2", **common)
    expected = (pixels - 3 * slope / slope.norm()).clamp(0, 1) * 255
    assert (torch.from_numpy(l2.picture).permute(2, 0, 1) - expected).abs().max() < 0.501
    assert [l2.metadata[name] for name in how] == ["log_probability", "gradient", 3.0, "l2"]


@pytest.mark.parametrize("variant", ["gradient", "sign", "adam"])
@pytest.mark.parametrize(("budget", "norm"), [(2 / 255, "linf"), (1.5, "l2")])
def test_the_budget_holds(model, photograph, goal, variant, budget, norm):
    result = rewrite(
        model, photograph, target=goal, until=0.999, variant=variant, budget=budget, norm=norm, steps=15, method=None
    )
    assert getattr(result.similarity, norm) <= budget + 1e-6
    assert result.similarity.l2 > 0


def test_the_defaults_within_a_budget_go_further_than_the_published_step(model, photograph):
    ways = {"default": {}, "published": {"objective": "difference", "variant": "gradient", "step": 0.01}}
    goals = classify(model, photograph).argsort()[:5].tolist()
    found = {
        name: [
            rewrite(
                model, photograph, target=goal, until=0.999, budget=2 / 255, steps=8, method=None, **way
            ).probability
            for goal in goals
        ]
        for name, way in ways.items()
    }
    assert all(one > other for one, other in zip(found["default"], found["published"], strict=True))


def test_what_cannot_be_reached_is_said(model, photograph, goal):
    result = rewrite(model, photograph, target=goal, until=0.999, budget=1 / 255, steps=4, method=None)
    assert not result.reached
    assert result.reason == "4 steps taken, budget linf 0.003922"
    assert result.probability == result.curves[:, 1].max() < 0.999
    said = f"{NAMES[goal]} not reached: {100 * result.probability:.1f} % of the 99.9 % asked for is the most found"
    assert result.summary().startswith(said)
    assert classify(model, result.picture).softmax(dim=0)[goal].item() == result.probability


def test_twice_is_the_same(model, photograph, goal):
    one, two = (rewrite(model, photograph, target=goal, until=0.5, method=None) for _ in range(2))
    assert np.array_equal(one.picture, two.picture)
    assert np.array_equal(one.curves, two.curves)


def test_classes_by_name_progress_and_maps(model, photograph, goal, tmp_path):
    path, seen = tmp_path / "photo.png", []
    Image.fromarray(photograph).save(path)
    source = NAMES[int(classify(model, path).argmax())]
    result = rewrite(model, path, source=source, target=NAMES[goal].upper(), until=0.5, progress=seen.append)
    assert result.names == (source, NAMES[goal])
    assert [(at.step, at.steps) for at in seen] == [(i, 500) for i in range(result.step + 1)]
    assert isinstance(seen[-1], Progress)
    assert (seen[-1].source, seen[-1].target) == tuple(result.curves[-1])
    assert result.before is not None
    assert result.after is not None
    assert result.before.scores.shape == result.after.scores.shape == (1, 2, 4, 4)
    expected = vitrail.explain(model, result.picture, [[result.source, goal]])
    torch.testing.assert_close(result.after.scores, expected.scores)
    figure = result.plot()
    said = [text.get_text() for text in figure.texts]
    assert any(text.startswith("difference × ") for text in said)
    assert result.summary() in said
    assert result.record()["target"] == NAMES[goal]


def test_outside_the_crop_nothing_changes(model, goal):
    wide = np.random.default_rng(3).integers(0, 256, (80, 200, 3), dtype=np.uint8)
    target = int(classify(model, wide).argsort()[-2])
    result = rewrite(model, wide, target=target, until=0.5, method=None)
    changed = (result.picture != result.original).any(axis=(0, 2)).nonzero()[0]
    assert changed.min() > 50
    assert changed.max() < 150


def test_at_the_input_only_what_the_model_sees_is_rewritten(model, photograph, goal, tmp_path):
    result = rewrite(model, photograph, target=goal, until=0.5, at="input", method=None)
    assert result.reached
    assert np.array_equal(result.original, np.asarray(model.preprocess.view(Image.fromarray(photograph))))
    saved = result.save(tmp_path / "view.png")
    assert classify(unresized(model), saved).softmax(dim=0)[goal].item() == result.probability
    assert result.metadata["at"] == "input"


def test_the_model_is_as_before(model, photograph, goal):
    before = {name: (p.requires_grad, p.grad, p.clone()) for name, p in model.module.named_parameters()}
    rewrite(model, photograph, target=goal, until=0.3, method=None)
    for name, parameter in model.module.named_parameters():
        required, gradient, value = before[name]
        assert parameter.requires_grad == required
        assert parameter.grad is gradient is None
        assert torch.equal(parameter, value)


def test_no_gradient_left():
    class Constant(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([[2.0, 1.0]])

    flat = vitrail.wrap(Constant().eval(), preprocess=vitrail.Preprocess(size=(8, 8)))
    result = rewrite(flat, np.zeros((16, 16, 3), dtype=np.uint8), target=1, method=None)
    assert not result.reached
    assert result.reason == "no gradient is left after 0 steps"


def test_nan_is_refused():
    class Broken(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :2] * torch.nan

    broken = vitrail.wrap(Broken().eval(), preprocess=vitrail.Preprocess(size=(8, 8)))
    with pytest.raises(NonFiniteError, match="the logits hold NaN"):
        rewrite(broken, np.zeros((16, 16, 3), dtype=np.uint8), target=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "zebra"}, UnknownClassError, "no class of the model's 10 is called 'zebra'"),
        ({"target": 10}, UnknownClassError, "there is no class 10"),
        ({"target": "a", "source": "a"}, TargetError, "target 0 is a, which is the source as well"),
        ({"target": 1, "source": "q"}, UnknownClassError, "'q'"),
        ({"target": True}, TargetError, "True is no class"),
        ({"target": 1, "until": 0.0}, OptionError, "until=0 is no probability to reach"),
        ({"target": 1, "until": 1.0}, OptionError, "until=1 is no probability to reach"),
        ({"target": 1, "budget": 0}, OptionError, "budget=0 allows no change"),
        ({"target": 1, "budget": -1.0, "norm": "l2"}, OptionError, "budget=-1 allows no change"),
        ({"target": 1, "norm": "l3"}, OptionError, "norm='l3' is not one of"),
        ({"target": 1, "variant": "newton"}, OptionError, "variant='newton' is not one of gradient, sign, adam"),
        (
            {"target": 1, "objective": "ratio"},
            OptionError,
            "objective='ratio' is not one of difference, log_probability",
        ),
        ({"target": 1, "budget": float("inf")}, OptionError, "budget=inf limits nothing"),
        ({"target": 1, "step": float("nan")}, OptionError, "step=nan must lie above 0"),
        ({"target": 1, "at": "crop"}, OptionError, "at='crop' is not one of photograph, input"),
        ({"target": 1, "steps": 0}, OptionError, "steps=0 must be 1 or more"),
        ({"target": 1, "step": 0.0}, OptionError, "step=0 must lie above 0"),
    ],
)
def test_refusals(model, photograph, options, error, message):
    with pytest.raises(error, match=message):
        rewrite(model, photograph, **options)


def test_the_predicted_class_is_no_target(model, photograph):
    predicted = int(classify(model, photograph).argmax())
    with pytest.raises(TargetError, match="which the model predicts already"):
        rewrite(model, photograph, target=predicted)


def test_tensors_and_models_without_preprocessing_are_refused(model, photograph):
    with pytest.raises(ImageError, match="a tensor is no file of 8 bits"):
        rewrite(model, torch.zeros(3, 64, 64), target=1)
    with pytest.raises(ModelError, match="tiny comes without preprocessing"):
        rewrite(replace(model, preprocess=None), photograph, target=1)


@pytest.mark.parametrize("name", ["new.jpg", "new.jpeg", "new", "new.gif"])
def test_lossy_files_are_refused(model, photograph, goal, name, tmp_path):
    result = rewrite(model, photograph, target=goal, until=0.2, method=None)
    assert isinstance(result, Rewrite)
    with pytest.raises(OptionError, match="which only lossless files keep; name it .png or .webp"):
        result.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_zebra_to_bull_mastiff_on_the_real_model(vit_tiny, shared, tmp_path):
    """The paper's 224 x 224 pixels, cut from a picture whose shorter side is 256."""
    model = replace(vit_tiny, preprocess=replace(vit_tiny.preprocess, resize=256))
    photo = shared / "images" / "pairs" / "el2.png"
    result = rewrite(model, photo, source="zebra", target="bull mastiff", until=0.938, at="input", method=None)
    answer = classify(unresized(model), result.save(tmp_path / "mastiff.png")).softmax(dim=0)
    assert result.reached
    assert result.picture.shape == (224, 224, 3)
    assert answer.argmax() == 243
    assert answer[243] >= 0.938
    assert result.step < 50
    assert result.similarity.psnr > 43
    assert result.similarity.linf <= 22 / 255
