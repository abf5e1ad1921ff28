"""Insertion and deletion against a literal loop, and against RISE's own scores on the real model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from perturbation_reference import softmax
from protocol_driver import by_measure, case_of, drive
from torch import Tensor

from vitrail.errors import OptionError
from vitrail.metrics import find_protocol
from vitrail.metrics.aggregation import Curves
from vitrail.metrics.faithfulness.insertion_deletion import mean_height, step_ends
from vitrail.metrics.protocol import LogitQuery
from vitrail.metrics.removal import FILLS, blurred, filling, folded_gaussian

SIDE, CLASSES = 12, 4


def linear(images: Tensor) -> Tensor:
    weights = torch.randn(3 * SIDE * SIDE, CLASSES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return torch.tanh(images.double().flatten(1) @ weights / 6) * 4


def one(seed: int = 0, **known):
    """A picture and a map of its pixels, all of them different."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    scores = torch.randperm(SIDE * SIDE, generator=generator).view(SIDE, SIDE).double() - 50
    return case_of(image, linear(image[None])[0], **known), scores


def single_run(start: np.ndarray, finish: np.ndarray, scores: np.ndarray, step: int, asked: int) -> list[float]:
    """As RISE goes: predict, then copy the next `step` pixels from `finish`; one score more than there are steps."""
    image, order = start.reshape(3, -1).copy(), np.argsort(-scores.flatten(), kind="stable")
    found = []
    for k in range((scores.size + step - 1) // step + 1):
        logits = linear(torch.from_numpy(image.reshape(1, 3, SIDE, SIDE)))[0].numpy()
        found.append(softmax(logits)[asked])
        here = order[k * step : (k + 1) * step]
        image[:, here] = finish.reshape(3, -1)[:, here]
    return found


@pytest.mark.parametrize("step", [1, 12, 50, 144])
@pytest.mark.parametrize("fill", ["blur", "zero", "black"])
def test_both_are_what_a_literal_run_gives(step, fill):
    case, scores = one()
    image, ground = case.image.numpy(), filling(case, fill).numpy()
    for name, start, finish in (("insertion", ground, image), ("deletion", image, ground)):
        measured = drive(name, case, scores, linear, step=step, fill=fill, batch=7)
        expected = single_run(start, finish, scores.numpy(), step, case.predicted)
        np.testing.assert_allclose([value for _, _, value in measured], expected, atol=1e-12)
        assert measured[0].step == 0
        assert measured[-1].step == 1
        height = (np.sum(expected) - expected[0] / 2 - expected[-1] / 2) / (len(expected) - 1)
        assert float(mean_height(torch.tensor(expected))) == pytest.approx(height)
        values = {f"{name}.probability": np.array([expected, expected[::-1]])}
        curves = Curves(np.arange(2), {f"{name}.probability": tuple(one.step for one in measured)}, values)
        statistic = find_protocol(name).summarise(curves, step=step)[f"{name} AUC"]
        assert statistic.value() == pytest.approx(height)
        assert statistic.better == (1 if name == "insertion" else -1)


def test_the_scores_can_begin_after_the_first_step_and_count_hits_of_another_class():
    case, scores = one(target=3, label=1)
    whole = drive("deletion", case, scores, linear, step=12)
    assert drive("deletion", case, scores, linear, step=12, skip=1) == whole[1:]
    hits = by_measure(drive("deletion", case, scores, linear, step=12, score="hit", target="explained"))["deletion.hit"]
    seen = by_measure(drive("deletion", case, scores, linear, step=12, target="explained"))["deletion.probability"]
    assert set(hits) <= {0.0, 1.0}
    assert all(probability > 0.25 for hit, probability in zip(hits, seen, strict=True) if hit)
    labels = by_measure(drive("deletion", case, scores, linear, step=12, target="label"))["deletion.probability"]
    assert labels[0] == pytest.approx(float(case.logits.softmax(0)[1]))
    assert seen[0] == pytest.approx(float(case.logits.softmax(0)[3]))


def test_lerf_flips_in_the_opposite_order():
    case, scores = one(4)
    morf = drive("pixel_flipping", case, scores, linear, step=12)
    lerf = drive("pixel_flipping", case, -scores, linear, step=12, order="lerf")
    assert [x.value for x in morf] == [x.value for x in lerf]
    assert {x.measure for x in lerf} == {"lerf.probability"}
    curves = Curves(
        np.arange(1), {"lerf.probability": (1.0,)}, {"lerf.probability": np.array([[x.value for x in lerf]])}
    )
    summary = find_protocol("pixel_flipping").summarise(curves, order="lerf")
    assert summary["pixel flipping AUC, lerf"].better == 1


def test_no_image_is_made_before_it_is_asked_for():
    case, scores = one()
    question = next(find_protocol("deletion").function(case, scores, step=1))
    assert isinstance(question, LogitQuery)
    assert question.count == 145
    assert question.make(range(144, 145)).shape == (1, 3, SIDE, SIDE)
    assert question.make(range(144, 145)).abs().max() == 0


# -- grounds ----------------------------------------------------------------------------------------------------------


def gkern(length: int, sigma: float) -> np.ndarray:
    """A single one amid zeros under SciPy's Gaussian filter, as RISE makes its window."""
    ndimage = pytest.importorskip("scipy.ndimage")
    window = np.zeros((length, length))
    window[length // 2, length // 2] = 1
    return ndimage.gaussian_filter(window, sigma)


@pytest.mark.parametrize(("length", "sigma"), [(11, 5.0), (3, 1.0), (7, 0.5), (5, 9.0)])
def test_the_folded_gaussian_is_what_scipy_makes_of_a_single_one(length, sigma):
    window = folded_gaussian(length, sigma).numpy()
    np.testing.assert_allclose(np.outer(window, window), gkern(length, sigma), atol=1e-14)


def test_blur_is_the_whole_window_over_an_image_with_zeros_around():
    case, _ = one()
    padded, window = np.pad(case.image.numpy(), ((0, 0), (5, 5), (5, 5))), gkern(11, 5.0)
    expected = [
        [[(padded[c, r : r + 11, s : s + 11] * window).sum() for s in range(SIDE)] for r in range(SIDE)]
        for c in range(3)
    ]
    np.testing.assert_allclose(blurred(case.image).numpy(), expected, atol=1e-12)
    half = case.image.bfloat16()
    torch.testing.assert_close(blurred(half), blurred(half.double()).bfloat16())


@pytest.mark.parametrize("fill", FILLS)
def test_every_ground_is_as_it_is_described(fill):
    case = replace(one(black=(-2.0, -1.5, -1.0))[0], seed=3)
    image, ground = case.image, filling(case, fill)
    generator = torch.Generator().manual_seed(3)
    expected = {
        "black": torch.tensor([-2.0, -1.5, -1.0], dtype=torch.float64)[:, None, None].expand_as(image),
        "zero": torch.zeros_like(image),
        "mean": torch.stack([channel.mean() for channel in image])[:, None, None].expand_as(image),
        "lowest": torch.full_like(image, float(image.min())),
        "highest": torch.full_like(image, float(image.max())),
        "noise": torch.randn(image.shape, generator=generator).double(),
        "blur": blurred(image),
    }[fill]
    torch.testing.assert_close(ground, expected)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["insertion", "deletion", "pixel_flipping"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0}, "step=0 must be a whole number, 1 or more"),
        ({"fill": "red"}, "fill='red' is unknown; choose one of black"),
        ({"target": "top"}, "target='top' is unknown; choose one of explained, predicted, label"),
        ({"target": "label"}, "target='label' needs the true class of one, which is not known"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(OptionError, match=message):
        drive(name, *one(), **({"step": 12} | options))


def test_words_and_steps_of_single_protocols_are_refused():
    with pytest.raises(OptionError, match="score='logit' is unknown; choose one of probability, hit"):
        drive("insertion", *one(), score="logit")
    with pytest.raises(OptionError, match="order='random' is unknown; choose one of morf, lerf"):
        drive("pixel_flipping", *one(), order="random")
    with pytest.raises(OptionError, match="step=144 with skip=1 leaves 1 scores of 144 places; two are least"):
        step_ends(144, step=144, skip=1)
    with pytest.raises(OptionError, match="skip=-1"):
        drive("deletion", *one(), skip=-1)


# -- RISE on the real model -------------------------------------------------------------------------------------------


def rise_case(shared, name: str, target: int):
    with np.load(shared / "oracles" / "inputs.npz") as held:
        image, logits = torch.from_numpy(held[f"{name}/x"])[0], torch.from_numpy(held[f"{name}/logits"])
    with np.load(shared / "oracles" / "gae.npz") as held:
        scores = torch.from_numpy(held[f"{name}/{target}"]).float()
    with np.load(shared / "oracles" / "rise_ins_del_gae.npz") as held:
        scores_of = {short: held[f"{name}/{target}/{short}"] for short in ("ins", "del")}
        areas = {short: float(held[f"{name}/{target}/{short}/auc"]) for short in ("ins", "del")}
        kernel = held["kernel"]
    return case_of(image, logits, grid=(14, 14)), scores, scores_of, areas, kernel


@pytest.mark.parametrize(("protocol", "short"), [("insertion", "ins"), ("deletion", "del")])
def test_some_of_rise_s_own_scores(shared, vit_tiny, protocol, short):
    case, scores, expected, _, kernel = rise_case(shared, "snail", 113)
    np.testing.assert_allclose(np.outer(folded_gaussian(), folded_gaussian()), kernel, atol=1e-9)
    question = next(find_protocol(protocol).function(case, scores))
    assert question.count == 225
    places = [0, 1, 20, 60, 100, 150, 200, 224]
    with torch.no_grad():
        logits = vit_tiny.logits(torch.cat([question.make(range(k, k + 1)) for k in places]))
    # Bilinear enlargement repeats values at the borders, and RISE takes equals in whatever order its sort leaves them.
    near = np.isclose(logits.double().softmax(-1)[:, 113].numpy(), expected[short][places], rtol=1e-4, atol=1e-6)
    assert near[[0, -1]].all()
    assert near.sum() >= 6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), [("catdog", 243), ("snail", 113)])
@pytest.mark.parametrize(("protocol", "short"), [("insertion", "ins"), ("deletion", "del")])
def test_rise_s_own_scores_and_areas(shared, vit_tiny, name, target, protocol, short):
    case, scores, expected, areas, _ = rise_case(shared, name, target)
    measured = drive(protocol, case, scores, vit_tiny.logits, batch=25)
    found = np.array([one.value for one in measured])
    assert found.shape == (225,)
    assert np.isclose(found, expected[short], rtol=1e-4, atol=1e-6).mean() > 0.6
    assert float(mean_height(torch.from_numpy(found))) == pytest.approx(areas[short], abs=2e-4)
    assert float(mean_height(torch.from_numpy(expected[short]))) == pytest.approx(areas[short], abs=1e-12)
