"""AOPC, log-odds, average drop and SaCo against literal loops in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from perturbation_reference import scaled, softmax
from protocol_driver import by_measure, case_of, drive
from torch import Tensor

from vitrail.errors import OptionError
from vitrail.metrics import find_protocol
from vitrail.metrics.aggregation import Curves
from vitrail.metrics.faithfulness.average_drop import confidence_change
from vitrail.metrics.faithfulness.region_perturbation import area_over_curve
from vitrail.metrics.faithfulness.saco import group_ends, salience_consistency
from vitrail.metrics.removal import filling

SIDE, CLASSES = 12, 4


def linear(images: Tensor) -> Tensor:
    weights = torch.randn(3 * SIDE * SIDE, CLASSES, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return torch.tanh(images.double().flatten(1) @ weights / 6) * 4


def probability(image: np.ndarray, asked: int) -> float:
    return float(softmax(linear(torch.from_numpy(image)[None])[0].numpy())[asked])


def one(seed: int = 0, pixels: bool = True, **known):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    side = SIDE if pixels else 3
    scores = torch.randn(side, side, generator=generator, dtype=torch.float64)
    usual = {"target": 1, "black": (-2.0, -1.5, -1.0)}
    return case_of(image, linear(image[None])[0], **(usual | known)), scores


def single(name: str, measured, **options) -> dict:
    """The summary of a run of one image."""
    found = by_measure(measured)
    steps = {measure: tuple(map(float, range(len(row)))) for measure, row in found.items()}
    curves = Curves(np.arange(1), steps, {measure: np.array([row]) for measure, row in found.items()})
    return find_protocol(name).summarise(curves, **options)


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize(("unit", "size"), [("region", 4), ("region", 3), ("patch", 4)])
@pytest.mark.parametrize("fill", ["lowest", "mean"])
def test_regions_go_one_by_one_and_aopc_is_the_sum_over_one_more(order, unit, size, fill):
    case, scores = one(pixels=unit == "region")
    ground, image = filling(case, fill).numpy(), case.image.numpy().copy()
    large = scores.numpy() if unit == "region" else np.kron(scores.numpy(), np.ones((4, 4)))
    corners = [(r, c) for r in range(0, SIDE, size) for c in range(0, SIDE, size)]
    sums = [large[r : r + size, c : c + size].sum() for r, c in corners]
    whole, drops = probability(image, 1), []
    for place in np.argsort(sums)[:: -1 if order == "morf" else 1][:7]:
        r, c = corners[place]
        image[:, r : r + size, c : c + size] = ground[:, r : r + size, c : c + size]
        drops.append(whole - probability(image, 1))
    options = {"unit": unit, "size": size, "regions": 7, "order": order, "fill": fill}
    measured = drive("region_perturbation", case, scores, linear, **options)
    np.testing.assert_allclose([x.value for x in measured], drops, atol=1e-12)
    assert [x.step for x in measured] == list(range(1, 8))
    statistic = single("region_perturbation", measured, **options)[f"AOPC, {order}"]
    assert statistic.value() == pytest.approx(np.mean([0.0, *drops]))
    assert statistic.better == (1 if order == "morf" else -1)
    assert float(area_over_curve(torch.tensor(drops))) == pytest.approx(np.mean([0.0, *drops]))


@pytest.mark.parametrize("unit", ["pixel", "patch"])
@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_log_odds_are_the_logarithm_of_a_quotient(unit, order):
    case, scores = one(2, pixels=unit == "pixel")
    large = scores.numpy() if unit == "pixel" else np.kron(scores.numpy(), np.ones((4, 4)))
    ranked = np.sort(large.flatten() if unit == "pixel" else scores.numpy().flatten())
    expected = []
    for share in (0.2, 0.5):
        count = int(len(ranked) * share)
        gone = large >= ranked[-count] if order == "morf" else large <= ranked[count - 1]
        image = np.where(gone, np.array(case.black)[:, None, None], case.image.numpy())
        expected.append(math.log(probability(image, 1) / probability(case.image.numpy(), 1)))
    options = {"shares": (0.2, 0.5), "unit": unit, "order": order}
    measured = drive("log_odds", case, scores, linear, **options)
    np.testing.assert_allclose([x.value for x in measured], expected, atol=1e-12)
    statistic = single("log_odds", measured, **options)[f"log-odds, {order}"]
    assert statistic.value() == pytest.approx(np.mean(expected))
    assert statistic.better == (-1 if order == "morf" else 1)


@pytest.mark.parametrize("veil", ["map", "top"])
@pytest.mark.parametrize("fill", ["zero", "black"])
@pytest.mark.parametrize("target", [0, 1, 2, 3])
def test_the_veil_is_the_map_from_0_to_1_and_the_change_as_defined(veil, fill, target):
    case, scores = one(5, target=target)
    weights = scaled(scores.numpy())
    if veil == "top":
        weights = (weights >= np.sort(weights.flatten())[-int(0.3 * SIDE * SIDE)]).astype(float)
    ground = filling(case, fill).numpy()
    p = probability(case.image.numpy(), target)
    p_m = probability(case.image.numpy() * weights + ground * (1 - weights), target)
    measured = drive("average_drop", case, scores, linear, veil=veil, share=0.3, fill=fill)
    expected = {"drop": max(0, p - p_m) / p, "increase": float(p_m > p), "gain": max(0, p_m - p) / (1 - p)}
    assert {x.measure: pytest.approx(x.value, abs=1e-12) for x in measured} == expected
    summary = single("average_drop", measured)
    assert {name: pytest.approx(x.value(), abs=1e-12) for name, x in summary.items()} == {
        f"average {name}": value for name, value in expected.items()
    }
    assert [x.better for x in summary.values()] == [-1, 1, 1]


def test_a_certain_answer_has_nothing_to_gain():
    change = confidence_change(torch.tensor(1.0), torch.tensor(1.0))
    assert [float(x) for x in change] == [0, 0, 0]


# -- SaCo -------------------------------------------------------------------------------------------------------------


def coefficient(salience, effect) -> float:
    """Pair by pair, as the paper writes it."""
    over, under = 0.0, 0.0
    for i in range(len(salience)):
        for j in range(i + 1, len(salience)):
            weight = salience[i] - salience[j] if effect[i] >= effect[j] else -(salience[i] - salience[j])
            over, under = over + weight, under + abs(weight)
    return over / under if under else 0.0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-10, 10, width=32), st.sampled_from([-0.2, 0.0, 0.1, 0.1, 0.5])), min_size=2, max_size=12
    )
)
def test_the_coefficient_is_that_of_the_pairs(groups):
    salience, effect = sorted((s for s, _ in groups), reverse=True), [d for _, d in groups]
    found = float(salience_consistency(torch.tensor(salience).double(), torch.tensor(effect).double()))
    assert found == pytest.approx(coefficient(salience, effect), abs=1e-9)
    assert -1 - 1e-9 <= found <= 1 + 1e-9


@pytest.mark.parametrize("groups", [2, 7, 10])
@pytest.mark.parametrize("fill", ["mean", "black"])
def test_saco_fills_each_group_by_itself(groups, fill):
    case, scores = one(6)
    flat, ground = scaled(scores.numpy()).flatten(), filling(case, fill).numpy()
    order, ends = np.argsort(-flat, kind="stable"), [len(flat) * (k + 1) // groups for k in range(groups)]
    whole, salience, effect = probability(case.image.numpy(), case.predicted), [], []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        image = case.image.numpy().copy().reshape(3, -1)
        image[:, order[start:end]] = ground.reshape(3, -1)[:, order[start:end]]
        salience.append(flat[order[start:end]].sum())
        effect.append(whole - probability(image.reshape(3, SIDE, SIDE), case.predicted))
    measured = drive("saco", case, scores, linear, groups=groups, fill=fill)
    assert measured[0].value == pytest.approx(coefficient(salience, effect), abs=1e-12)
    assert single("saco", measured)["SaCo"].value() == measured[0].value
    assert group_ends(len(flat), groups) == ends


def test_a_map_that_is_what_the_model_does_has_a_coefficient_of_one():
    case, _ = one(7)
    asked = case.predicted
    gains = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    for k in range(SIDE * SIDE):
        image = case.image.clone().flatten(1)
        image[:, k] = image.mean(dim=1)
        gains.view(-1)[k] = probability(case.image.numpy(), asked) - probability(
            image.view(3, SIDE, SIDE).numpy(), asked
        )
    found = drive("saco", case, gains, linear)[0].value
    assert found > 0.95
    assert drive("saco", case, -gains, linear)[0].value < -0.95
    assert drive("saco", case, torch.zeros(3, 3), linear)[0].value == 0


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("region_perturbation", {"size": 5}, "regions of 5×5 pixels do not divide an image of 12×12"),
        ("region_perturbation", {"unit": "pixel"}, "unit='pixel' is unknown; choose one of region, patch"),
        ("region_perturbation", {"order": "most"}, "order='most' is unknown; choose one of morf, lerf"),
        ("region_perturbation", {"regions": 0}, "regions=0 must be a whole number, 1 or more"),
        ("log_odds", {"shares": (0.0,)}, "must each lie above 0 and below 1"),
        ("log_odds", {"unit": "token"}, "unit='token' is unknown; choose one of pixel, patch"),
        ("average_drop", {"veil": "all"}, "veil='all' is unknown; choose one of map, top"),
        ("average_drop", {"share": 1.5}, "must each lie above 0 and below 1"),
        ("saco", {"groups": 1}, "groups=1 must be a whole number, 2 or more"),
        ("saco", {"groups": 500}, "groups=500 of 144 places cannot be compared; give from 2 to 144"),
        ("saco", {"target": "top"}, "target='top' is unknown"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(OptionError, match=message):
        drive(name, *one(), **options)
