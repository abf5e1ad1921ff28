"""Each measure against a literal loop, and at its two ends."""

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.bestiary.benchmark import part_scores, part_sign
from vitrail.metrics.localisation.energy import energy_share
from vitrail.metrics.localisation.pointing import highest_inside
from vitrail.metrics.maps import rank_correlation, spread
from vitrail.metrics.signs import sign_accuracy

NUMBERS = st.integers(-5, 5)


def literal_ranks(values):
    ranks = []
    for value in values:
        below, equal = sum(v < value for v in values), sum(v == value for v in values)
        ranks.append(below + (equal - 1) / 2)
    return ranks


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=9))
def test_rank_correlation_is_spearmans(pairs):
    first, second = ([float(pair[k]) for pair in pairs] for k in (0, 1))
    found = rank_correlation(torch.tensor(first), torch.tensor(second))
    a, b = literal_ranks(first), literal_ranks(second)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(float(np.corrcoef(a, b)[0, 1]), abs=1e-9)


def test_rank_correlation_needs_three_parts():
    assert math.isnan(rank_correlation(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])))


@given(arrays.arrays(np.float64, (3, 4), elements=st.floats(-1, 1)))
def test_spreading_keeps_the_sum_and_the_place(scores):
    pixels = spread(torch.from_numpy(scores), (6, 12))
    assert float(pixels.sum()) == pytest.approx(scores.sum(), abs=1e-9)
    assert torch.equal(pixels[2:4, 3:6] * 6, torch.full((2, 3), float(scores[1, 1]), dtype=torch.float64) / 6 * 6)


def test_a_map_that_does_not_tile_the_picture_is_refused():
    with pytest.raises(ValueError, match="a map of 3 x 4 patches does not tile a picture of 8 x 8 pixels"):
        spread(torch.zeros(3, 4), (8, 8))


def scene():
    left = torch.zeros(4, 4, dtype=torch.bool)
    right = left.clone()
    left[:, 0], right[:, 3] = True, True
    return left, right


def test_sign_accuracy_knows_right_wrong_and_unsigned():
    left, right = scene()
    right_way = left.float() - right.float()
    assert sign_accuracy(right_way, left, right) == 1
    assert sign_accuracy(-right_way, left, right) == 0
    assert sign_accuracy(torch.rand(4, 4), left, right) == 0.5
    half = right_way.clone()
    half[:2, 0] = -3.0  # on the target 2 of 8 are positive, on the other all is negative
    assert sign_accuracy(half, left, right) == pytest.approx((2 / 8 + 1) / 2)
    assert math.isnan(sign_accuracy(torch.zeros(4, 4), left, right))


def test_energy_and_pointing_look_at_what_is_positive():
    left, _ = scene()
    pixels = torch.full((4, 4), -1.0)
    assert math.isnan(energy_share(pixels, left, "positive"))
    pixels[0, 0], pixels[0, 1] = 3.0, 1.0
    assert energy_share(pixels, left, "positive") == 0.75
    assert highest_inside(pixels, left) == 1
    pixels[2, 2] = 9.0
    assert highest_inside(pixels, left) == 0


def test_part_sign_counts_only_what_is_asked():
    says = torch.tensor([1.0, -1.0, 0.0])
    assert part_sign(torch.tensor([2.0, -0.1, 5.0]), says) == 1
    assert part_sign(torch.tensor([2.0, 0.1, 5.0]), says) == 0.5
    assert part_sign(torch.tensor([0.0, 0.1, 5.0]), says) == 0.25
    assert math.isnan(part_sign(torch.ones(3), torch.zeros(3)))


def test_part_scores_are_sums_over_masks():
    left, right = scene()
    pixels = torch.arange(16.0).view(4, 4)
    assert part_scores(pixels, torch.stack([left, right])).tolist() == [0 + 4 + 8 + 12, 3 + 7 + 11 + 15]
