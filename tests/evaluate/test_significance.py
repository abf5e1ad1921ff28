"""Intervals and differences against a slow bootstrap written out, and against what is known to be true."""

import sys

import numpy as np
import pytest

from vitrail.errors import OptionError
from vitrail.metrics.aggregation import Statistic, bootstrap, draws, weightings
from vitrail.report.significance import band, counted, holm, intervals, paired, per_image, ranks, resampled


def literal(statistic, resamples=200, seed=0, images=None):
    """Draw images, compute the statistic of those drawn, one resample after another."""
    images = np.flatnonzero(counted(statistic)) if images is None else images
    random = np.random.default_rng(seed)
    return np.array([statistic.value(images[random.integers(len(images), size=len(images))]) for _ in range(resamples)])


def means(seed=0, images=40, missing=0):
    values = np.random.default_rng(seed).normal(size=images)
    values[:missing] = np.nan
    return Statistic.mean(values)


def counts(seed=0, images=40):
    """As of a mean intersection over union: two classes, counts of pixels, some images without the second class."""
    rng = np.random.default_rng(seed)
    under = rng.integers(1, 500, size=(images, 2)).astype(np.float64)
    under[:5, 1] = 0
    return Statistic(np.floor(under * rng.uniform(size=under.shape)), under)


@pytest.mark.parametrize("statistic", [means(), means(1, missing=7), counts(2)], ids=["mean", "with NaN", "mIoU"])
def test_intervals_are_those_of_a_literal_bootstrap(statistic):
    (found,) = intervals([statistic], resamples=200, seed=3)
    values = literal(statistic, seed=3)
    assert found.mean == pytest.approx(statistic.value(), abs=1e-12)
    assert found[1:3] == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=1e-12)
    assert found.size == counted(statistic).sum()


def test_a_mean_has_the_interval_that_bootstrap_gives():
    statistic = means(4, missing=3)
    values = np.where(statistic.denominator[:, 0] > 0, statistic.numerator[:, 0], np.nan)
    assert intervals([statistic], seed=5)[0] == pytest.approx(bootstrap(values.tolist(), seed=5), abs=1e-12)


def test_draws_are_the_same_however_many_come_at_a_time(monkeypatch):
    whole = np.concatenate(list(draws(11, resamples=30, seed=1)))
    monkeypatch.setattr(sys.modules[draws.__module__], "HELD", 50)
    parts = list(draws(11, resamples=30, seed=1))
    assert len(parts) == 8
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    weights = np.concatenate(list(weightings(11, resamples=30, seed=1)))
    np.testing.assert_array_equal(weights, [np.bincount(row, minlength=11) for row in whole])


def test_statistics_of_several_sets_of_images_are_each_resampled_over_their_own():
    some = [means(1), means(2, missing=4), counts(3)]
    together = intervals(some, resamples=100)
    alone = [intervals([one], resamples=100)[0] for one in some]
    np.testing.assert_allclose(together, alone, atol=1e-12)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [intervals([Statistic.mean(rng.exponential(size=100))], resamples=400, seed=k)[0] for k in range(400)]
    covered = np.mean([low <= 1.0 <= high for _, low, high, _ in found])
    assert 0.90 <= covered <= 0.97  # a percentile interval of a skewed mean covers a little less than it should


def test_nothing_that_counts_gives_nan_and_no_image():
    none = Statistic.mean([np.nan, np.nan])
    (found,) = intervals([none])
    assert found.size == 0
    assert np.isnan(found[:3]).all()
    assert paired([{"a": none, "b": means(images=2)}])[0]["a", "b"].difference.size == 0


def test_statistics_of_different_images_are_not_resampled_together():
    with pytest.raises(OptionError, match=r"statistics of \[2, 3\] images"):
        resampled([means(images=2), means(images=3)])


# -- differences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("better", [1, -1, 0])
def test_a_difference_is_that_of_the_same_resamples_on_the_images_both_have(better):
    a, b = (one._replace(better=better) for one in (means(1, missing=3), means(2)))
    found = paired([{"a": a, "b": b}], resamples=200, seed=4)[0]["a", "b"]
    both = np.arange(3, 40)
    differences = literal(a, seed=4, images=both) - literal(b, seed=4, images=both)
    assert found.difference.size == 37
    assert found.difference.mean == pytest.approx(a.value(both) - b.value(both), abs=1e-12)
    assert found.difference[1:3] == pytest.approx(np.quantile(differences, (0.025, 0.975)), abs=1e-12)
    assert found.certainty == pytest.approx(np.mean(differences * (better or 1) > 0))


def test_accumulated_counts_are_compared_as_they_are_accumulated():
    a, b = counts(1), counts(2)
    found = paired([{"a": a, "b": b}], resamples=200)[0]["a", "b"]
    both = np.arange(40)
    differences = literal(a, images=both) - literal(b, images=both)
    assert found.difference[1:3] == pytest.approx(np.quantile(differences, (0.025, 0.975)), abs=1e-12)


def test_a_pair_turned_round_says_the_same():
    found = paired([{"a": means(1), "b": means(2)}], resamples=100)[0]
    one, other = found["a", "b"], found["b", "a"]
    assert other.difference == pytest.approx((-one.difference.mean, -one.difference.high, -one.difference.low, 40))
    assert other.certainty == pytest.approx(1 - one.certainty)
    assert (one.p, one.adjusted) == (other.p, other.adjusted)


def test_what_makes_an_image_hard_for_all_cancels_in_a_difference():
    rng = np.random.default_rng(0)
    hard = 10 * rng.normal(size=200)
    a, b = (Statistic.mean(hard + shift + 0.1 * rng.normal(size=200)) for shift in (0.05, 0.0))
    apart, other = intervals([a, b])
    assert apart.low < other.high  # the intervals overlap widely, and the difference is certain all the same
    found = paired([{"a": a, "b": b}])[0]["a", "b"]
    assert found.difference.low > 0
    assert found.certainty == 1.0
    assert found.p < 1e-4


def test_p_values_without_a_difference_are_uniform_and_agree_with_the_paired_t_test():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(1)
    pairs = [rng.normal(size=(2, 50)) for _ in range(300)]
    families = [{"a": Statistic.mean(a), "b": Statistic.mean(b)} for a, b in pairs]
    p = np.array([found["a", "b"].p for found in paired(families, resamples=400)])
    np.testing.assert_allclose(p, [ttest_rel(a, b).pvalue for a, b in pairs], atol=0.08)
    assert 0.02 <= (p < 0.05).mean() <= 0.09
    assert 0.4 <= (p < 0.5).mean() <= 0.6


def test_equal_methods_are_a_tie_and_no_proof():
    found = paired([{"a": means(1), "b": means(1)}])[0]["a", "b"]
    assert (found.difference.mean, found.certainty, found.p, found.adjusted) == (0.0, 0.5, 1.0, 1.0)


def test_one_image_proves_nothing_and_three_that_agree_little():
    one = paired([{"a": Statistic.mean([1.0]), "b": Statistic.mean([0.0])}])[0]["a", "b"]
    assert one.difference.mean == 1.0
    assert np.isnan([one.certainty, one.p, one.adjusted]).all()
    three = paired([{"a": Statistic.mean([1.0] * 3), "b": Statistic.mean([0.0] * 3)}])[0]["a", "b"]
    assert (three.certainty, three.p) == (1.0, 0.25)


def test_families_are_corrected_each_for_itself():
    family = {name: means(seed) for seed, name in enumerate("abc")}
    both, alone = paired([family, {"a": family["a"], "b": family["b"]}], resamples=200)
    assert len(both) == 6
    assert alone["a", "b"].adjusted == alone["a", "b"].p == both["a", "b"].p
    order = [("a", "b"), ("a", "c"), ("b", "c")]
    assert [both[pair].adjusted for pair in order] == holm([both[pair].p for pair in order])


def test_holm_is_the_step_down_of_the_paper():
    p = np.random.default_rng(0).uniform(size=20)
    found = np.array(holm(p.tolist()))
    for level in (0.05, 0.2, 0.6):  # reject from the smallest on while p ≤ level / (those left)
        rejected = 0
        for k, value in enumerate(sorted(p)):
            if value > level / (20 - k):
                break
            rejected += 1
        assert (found <= level).sum() == rejected
    assert holm([]) == []
    assert np.isnan(holm([np.nan, 0.01])[0])
    assert holm([np.nan, 0.01])[1] == 0.01


def test_the_same_seed_gives_the_same_numbers_and_another_others():
    family = {"a": means(1), "b": means(2)}
    first, again, other = (paired([family], seed=seed)[0]["a", "b"].difference for seed in (0, 0, 1))
    assert first == again
    assert first.low != other.low


# -- curves ----------------------------------------------------------------------------------------------------------


def test_a_band_is_an_interval_at_each_step_of_the_same_resamples():
    values = np.random.default_rng(0).normal(size=(30, 4))
    found = band(values, resamples=200, seed=2)
    ends = [intervals([Statistic.mean(column)], resamples=200, seed=2)[0] for column in values.T]
    np.testing.assert_allclose(np.stack(found[:3], axis=1), [one[:3] for one in ends], atol=1e-12)
    assert found.images.tolist() == [30] * 4


def test_what_is_not_finite_does_not_count_in_a_band():
    values = np.array([[1.0, np.nan, np.nan], [2.0, -np.inf, np.nan], [3.0, 5.0, np.nan]])
    found = band(values)
    assert found.mean[:2].tolist() == [2.0, 5.0]
    assert np.isnan([found.mean[2], found.low[2], found.high[2]]).all()
    assert found.images.tolist() == [3, 1, 0]
    assert np.isnan(band(np.empty((0, 3))).mean).all()


def test_per_image_and_ranks():
    one = counts(1)
    expected = [one.value(np.array([image])) for image in range(40)]
    np.testing.assert_allclose(per_image(one), expected, atol=1e-12)
    assert ranks([3.0, 1.0, 2.0], better=1) == [1.0, 3.0, 2.0]
