"""The table of the bestiary: its bounds hold for what they must, and the paper's claims can be read in it."""

import math

import pytest
import torch

import vitrail
from vitrail.errors import OptionError, UnknownMethodError
from vitrail.evaluate import MEASURES, bootstrap, planted_errors, score


@pytest.fixture(scope="module")
def model():
    return vitrail.load("bestiary")


def table_of(model, count):
    reports = []
    lines = score(model, ["gae", "complete", "absolute", "raw"], count=count, progress=lambda *r: reports.append(r))
    assert reports[-1] == ("explain", 8, 8)
    assert ("draw pairs", count, count) in reports
    return {line.label: line.measures for line in lines}


@pytest.fixture(scope="module")
def table(model):
    return table_of(model, 4)


@pytest.fixture(scope="module")
def wide_table(model):
    return table_of(model, 16)


def test_every_measure_of_every_line_is_in_its_range(table):
    assert len(table) == 2 + 3 * 2 + 1 + 1
    for label, measures in table.items():
        assert list(measures) == list(MEASURES)
        for name, interval in measures.items():
            if label == "a part not drawn" and "rank" not in name and name != "chimera sign":
                assert interval.size == 0
                continue
            low = -1 if "rank" in name or "likeness" in name else 0
            assert low <= interval.low <= interval.mean <= interval.high <= 1, (label, name)
            assert interval.size > 0


def test_the_truth_scores_full_marks(table):
    for name in ("pair rank", "rival rank", "single rank", "sibling rank"):
        assert table["a part not drawn"][name].mean == 1


@pytest.mark.slow
def test_chance_scores_none(wide_table):
    chance = wide_table["random"]
    for name in ("pair rank", "rival rank", "single rank", "sibling rank"):
        assert chance[name].low - 0.2 < 0 < chance[name].high + 0.2
    assert chance["pair sign"].mean == pytest.approx(0.5, abs=0.1)


def test_a_map_without_negative_scores_cannot_tell_sides(table):
    for method in ("gae, full", "absolute, full", "raw"):
        for name in ("pair sign", "rival sign", "chimera sign"):
            assert table[method][name].mean == pytest.approx(0.5)
        assert table[method]["single sign"].mean == 1
    assert table["raw"]["pair likeness"].mean == pytest.approx(1)


@pytest.mark.slow
def test_the_claims_that_hold_in_the_bestiary(wide_table):
    table = wide_table
    complete, gae, absolute = (table[f"{name}, full"] for name in ("complete", "gae", "absolute"))
    assert complete["pair sign"].low > gae["pair sign"].high
    assert complete["rival sign"].low > gae["rival sign"].high
    assert absolute["pair likeness"].low > complete["pair likeness"].high
    assert complete["chimera sign"].low > 0.8
    assert complete["single rank"].mean < gae["single rank"].mean
    assert table["complete, libra"]["single sign"].low > complete["single sign"].high


def test_another_model_and_bad_counts_are_refused(model):
    toy = vitrail.VisionModel(torch.nn.Identity(), "toy", class_names=("cat", "dog"))
    with pytest.raises(OptionError, match="toy does not answer with the 20 classes of the bestiary"):
        score(toy)
    with pytest.raises(OptionError, match="count=1 scenes of a kind are too few"):
        score(model, count=1)
    with pytest.raises(OptionError, match="count=0 scenes are too few"):
        planted_errors(model, count=0)
    with pytest.raises(UnknownMethodError, match="no method is called 'gea'"):
        score(model, ["gea"])


@pytest.mark.slow
def test_the_planted_error_turns_the_iconic_part_and_the_clean_model_does_not(model):
    clean = planted_errors(model, ["complete"], count=20)[0]
    mistaught = planted_errors(vitrail.load("bestiary/label-errors"), ["complete"], count=20)[0]
    assert clean.truly_wrong.high < 0.2
    assert clean.wrong_side.high < 0.2
    assert mistaught.truly_wrong.low > 0.8
    assert mistaught.wrong_side.low > clean.wrong_side.high
    assert mistaught.wrong_side.mean > 0.5


def test_bootstrap_is_deterministic_and_leaves_out_what_is_not_known():
    values = [0.0, 1.0, math.nan, 1.0, 0.0, 1.0]
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values).size == 5
    assert bootstrap(values).low < bootstrap(values).mean == pytest.approx(0.6)
    assert bootstrap([math.nan]).size == 0
    assert str(bootstrap([math.nan])) == "–"
