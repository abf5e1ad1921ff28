"""Pointing, energy and segmentation against literal float64 versions, and against the released script's numbers."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metrics.asking import ask, case, summary

from vitrail.errors import OptionError, how_to_install
from vitrail.metrics.localisation.energy import agreement, box_agreement, energy_share
from vitrail.metrics.localisation.pointing import grown, pointing_hit
from vitrail.metrics.localisation.segmentation import average_precision, counts, f1, foreground
from vitrail.metrics.maps import bilinear, enlarged

SIDE = 6
maps = arrays(np.float64, (SIDE, SIDE), elements=st.integers(-4, 4).map(float))
masks = arrays(np.bool_, (SIDE, SIDE))


def box(top: int, left: int, bottom: int, right: int, side: int = 16) -> torch.Tensor:
    found = torch.zeros(side, side, dtype=torch.bool)
    found[top:bottom, left:right] = True
    return found


# -- pointing ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call imports SciPy
@given(maps, masks, st.integers(0, 3))
def test_pointing_as_a_literal_loop_points(scores, mask, tolerance):
    found = pointing_hit(torch.from_numpy(scores), torch.from_numpy(mask), tolerance=tolerance)
    inside = [(r, c) for r in range(SIDE) for c in range(SIDE) if mask[r, c]]
    if not inside or 2 * len(inside) >= SIDE * SIDE:
        assert math.isnan(found)
        return
    highest = [(r, c) for r in range(SIDE) for c in range(SIDE) if scores[r, c] == scores.max()]
    hits = [any(math.hypot(r - i, c - j) <= tolerance for i, j in inside) for r, c in highest]
    assert found == pytest.approx(sum(hits) / len(hits))


def test_boxes_of_half_the_picture_do_not_count_unless_asked():
    scores, half = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)), box(0, 0, 8, 16)
    assert math.isnan(pointing_hit(scores, half))
    assert pointing_hit(scores, half, largest=0.51) in (0.0, 1.0)
    assert math.isnan(pointing_hit(scores, box(0, 0, 0, 0), largest=1))
    assert pointing_hit(scores, box(0, 0, 16, 16), largest=1) == 1.0


def test_the_pointing_protocol_enlarges_the_map_and_counts_chance():
    scores = torch.zeros(4, 4)
    scores[1, 2] = 1.0  # its centre lies between pixels 5 and 6, and 9 and 10
    hit, miss = box(5, 9, 7, 11), box(0, 0, 4, 4)
    found = [ask("pointing", case(boxes=boxes), scores) for boxes in (hit, miss, box(0, 0, 16, 16))]
    assert [[one.value for one in row] for row in found[:2]] == [[1.0, 4 / 256], [0.0, 16 / 256]]
    assert all(math.isnan(one.value) for one in found[2])
    table = summary("pointing", found)
    assert table["pointing"].value() == 0.5
    assert table["pointing by chance"].value() == pytest.approx(10 / 256)
    near = case(boxes=box(5, 12, 7, 14))  # two columns of equally high pixels, two and three beside it
    assert [ask("pointing", near, scores, tolerance=wide)[0].value for wide in (1, 2, 3)] == [0.0, 0.5, 1.0]


# -- energy -----------------------------------------------------------------------------------------------------------


@given(maps, masks)
def test_energy_as_a_literal_sum(scores, mask):
    for sign, mass in (("absolute", np.abs(scores)), ("positive", np.where(scores > 0, scores, 0))):
        found = energy_share(torch.from_numpy(scores), torch.from_numpy(mask), sign)
        if mass.sum() == 0:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(sum(mass[mask]) / mass.sum())


@given(masks, masks)
def test_agreement_as_a_literal_count(found, wanted):
    pairs = list(zip(found.flatten().tolist(), wanted.flatten().tolist(), strict=True))
    true, false, missed = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True)))
    ours = agreement(torch.from_numpy(found), torch.from_numpy(wanted))
    for value, above, below in zip(
        ours, (true, true, 2 * true), (true + false, true + missed, 2 * true + false + missed), strict=True
    ):
        assert math.isnan(value) if below == 0 else value == pytest.approx(above / below)


def test_a_map_without_positive_scores_finds_no_box():
    found = box_agreement(torch.tensor([[-1.0, -2.0]]), torch.tensor([[True, False]]))
    assert math.isnan(found.precision)
    assert (found.recall, found.f1) == (0.0, 0.0)


def test_the_energy_protocol():
    scores = torch.tensor([[2.0, -1.0], [0.0, 1.0]])
    one = case(torch.zeros(3, 2, 2), boxes=torch.tensor([[True, False], [False, False]]))
    found = {name: value for name, _, value in ask("energy", one, scores)}
    assert found == {
        "energy": 0.5,
        "area": 0.25,
        "box.precision": 0.5,
        "box.recall": 1.0,
        "box.f1": pytest.approx(2 / 3),
    }
    positive = ask("energy", one, scores, sign="positive")
    assert positive[0].value == pytest.approx(2 / 3)
    table = summary("energy", [ask("energy", one, scores), positive])
    assert {name: number.value() for name, number in table.items()} == {
        "energy": pytest.approx((1 / 2 + 2 / 3) / 2),
        "energy of an even map": 0.25,
        "box precision": 0.5,
        "box recall": 1.0,
        "box F1": pytest.approx(2 / 3),
    }


# -- segmentation -----------------------------------------------------------------------------------------------------


@given(masks, masks)
def test_counts_and_both_f1_as_literal_loops(found, mask):
    ours = counts(torch.from_numpy(found), torch.from_numpy(mask))
    pairs = list(zip(found.flatten().tolist(), mask.flatten().tolist(), strict=True))
    assert ours.correct == sum(a == b for a, b in pairs)
    assert ours.labelled == len(pairs)
    assert (ours.object_intersection, ours.object_union) == (
        sum(a and b for a, b in pairs),
        sum(a or b for a, b in pairs),
    )
    assert ours.ground_intersection == sum(not a and not b for a, b in pairs)
    assert ours.ground_union == sum(not a or not b for a, b in pairs)

    def literal(a, b):
        return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b)) if np.sum(a) + np.sum(b) else 0.0

    both = torch.from_numpy(found), torch.from_numpy(mask)
    assert f1(*both) == pytest.approx(literal(found, mask))
    rows = [literal(a, b) for a, b in zip(found, mask, strict=True)]
    assert f1(*both, rowwise=True) == pytest.approx(np.mean(rows))


def test_the_released_metrics_to_the_digit(shared):
    oracle = np.load(shared / "oracles" / "segmentation_metrics_tattr.npz")
    found = []
    for number in range(3):
        pixels, mask = torch.from_numpy(oracle[f"{number}/map"]), torch.from_numpy(oracle[f"{number}/label"] > 0)
        predicted = foreground(pixels)
        ours = counts(predicted, mask)
        assert [ours.correct, ours.labelled] == oracle[f"{number}/correct_labeled"].tolist()
        assert [ours.ground_intersection, ours.object_intersection] == oracle[f"{number}/inter"].tolist()
        assert [ours.ground_union, ours.object_union] == oracle[f"{number}/union"].tolist()
        assert average_precision(pixels, mask) == pytest.approx(float(oracle[f"{number}/ap"][0]), rel=1e-8)
        rows = [f1(predicted[row, None], mask[row, None]) for row in range(224)]
        np.testing.assert_allclose(rows, oracle[f"{number}/f1_rowwise"], rtol=1e-12)
        assert f1(predicted, mask, rowwise=True) == pytest.approx(oracle[f"{number}/f1_rowwise"].mean(), rel=1e-12)
        found.append(ask("segmentation", case(torch.zeros(3, 224, 224), mask=mask), pixels))
    table = summary("segmentation", found)
    inter, union = (np.sum([oracle[f"{number}/{name}"] for number in range(3)], axis=0) for name in ("inter", "union"))
    assert table["mIoU"].value() == pytest.approx((inter / union).mean(), rel=1e-12)
    correct = np.sum([oracle[f"{number}/correct_labeled"] for number in range(3)], axis=0)
    assert table["pixel accuracy"].value() == pytest.approx(correct[0] / correct[1], rel=1e-12)
    released = np.mean([oracle[f"{number}/f1_rowwise"] for number in range(3)])
    assert table["F1 of rows"].value() == pytest.approx(released, rel=1e-12)
    # The protocol brings maps to 0…1 first; these begin at 1e-5, which shifts [map] a little among [1 − map].
    assert table["mAP"].value() == pytest.approx(np.mean([oracle[f"{n}/ap"] for n in range(3)]), abs=1e-5)


def test_average_precision_is_the_mean_precision_at_each_place_right():
    pixels, mask = torch.tensor([[0.9, 0.4]], dtype=torch.float64), torch.tensor([[True, True]])
    # ranked: object 0.9 (right), ground 0.6 (wrong), object 0.4 (right), ground 0.1 (wrong)
    assert average_precision(pixels, mask) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_a_signed_map_is_cut_at_zero_too():
    scores = torch.tensor([[4.0, 1.0], [-4.0, 1.0]])
    mask = torch.tensor([[True, True], [False, True]])
    found = [ask("segmentation", case(torch.zeros(3, 2, 2), mask=mask), scores)]
    table = {name: number.value() for name, number in summary("segmentation", found).items()}
    assert (table["mIoU at 0"], table["F1 at 0"], table["pixel accuracy at 0"]) == (1.0, 1.0, 1.0)
    assert (table["pixel accuracy"], table["F1 of rows"]) == (
        1.0,
        1.0,
    )  # the mean of 0…1 is 0.5625, and 1 becomes 0.625
    alone = summary("segmentation", found, thresholds=("zero",))
    assert set(alone) == {"pixel accuracy at 0", "mIoU at 0", "F1 at 0", "F1 of rows at 0", "mAP"}


def test_sums_are_taken_over_the_data_set_before_they_are_divided():
    mask = torch.tensor([[True, False], [False, False]])
    scores = [torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])]
    found = [ask("segmentation", case(torch.zeros(3, 2, 2), mask=mask), one) for one in scores]
    # object: 1 of 1 and 0 of 2 pixels; ground: 3 of 3 and 2 of 4
    assert summary("segmentation", found)["mIoU"].value() == pytest.approx((1 / 3 + 5 / 7) / 2)


def test_enlarging_is_one_thing_everywhere():
    scores = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(3))
    large = bilinear(scores, (16, 16))
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    torch.testing.assert_close(enlarged(scores, (16, 16)), (large - low) / (high - low), rtol=0, atol=0)
    expected = 0.625 * scores[0, 0, 0] + 0.375 * scores[0, 0, 1]  # pixel 3 of the top row: 3/8 of the way
    assert float(large[0, 0, 3]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pointing_hit(torch.ones(2, 2), box(0, 0, 1, 1, 2), largest=0),
            "largest=0 is no share of the area above 0",
        ),
        (lambda: grown(box(0, 0, 1, 1, 2), -1), "tolerance=-1 pixels is below 0"),
        (lambda: energy_share(torch.ones(2, 2), box(0, 0, 1, 1, 2), "squared"), "sign='squared' .* absolute, positive"),
        (lambda: box_agreement(torch.ones(2, 2), box(0, 0, 1, 1, 2), 1.5), "share=1.5 of the highest score"),
        (lambda: foreground(torch.ones(2, 2), "otsu"), "threshold='otsu' is unknown; choose one of mean, zero"),
        (
            lambda: ask("segmentation", case(mask=box(0, 0, 4, 4)), torch.ones(4, 4), thresholds=["otsu"]),
            r"thresholds=\['otsu'\] are unknown; choose from mean, zero",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(OptionError, match=message):
        call()


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.metrics", None)
    with pytest.raises(OptionError, match=re.escape(how_to_install("evaluate"))):
        average_precision(torch.ones(2, 2), box(0, 0, 1, 1, 2))
