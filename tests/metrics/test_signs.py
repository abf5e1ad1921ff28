"""The signed measures against literal loops, and the protocol on the bestiary's pairs, whose regions are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metrics.asking import ask, case, summary

from vitrail.errors import OptionError
from vitrail.metrics.signs import Signs, sides, sign_shares

SIDE = 4
maps = arrays(np.float64, (SIDE, SIDE), elements=st.integers(-3, 3).map(float))
masks = arrays(np.bool_, (SIDE, SIDE))
LEFT = torch.arange(16).expand(16, 16) < 8
EDGE = torch.arange(16).expand(16, 16) < 12


def literal(scores, target, others):
    cells = [(scores[r, c], target[r, c], others[r, c]) for r in range(SIDE) for c in range(SIDE)]
    plus_on = sum(s for s, on, _ in cells if on and s > 0)
    minus_on = sum(-s for s, on, _ in cells if on and s < 0)
    plus_off = sum(s for s, _, off in cells if off and s > 0)
    minus_off = sum(-s for s, _, off in cells if off and s < 0)
    plus, minus = sum(max(s, 0) for s, _, _ in cells), sum(max(-s, 0) for s, _, _ in cells)

    def share(part, whole):
        return part / whole if whole else math.nan

    return Signs(
        (share(plus_on, plus_on + minus_on) + share(minus_off, plus_off + minus_off)) / 2,
        share(plus_on + minus_off, plus_on + minus_on + plus_off + minus_off),
        share(plus_on, plus),
        share(minus_off, minus),
    )


@given(maps, masks, masks)
def test_the_shares_as_literal_sums(scores, one, other):
    target, others = one & ~other, other & ~one
    found = sign_shares(torch.from_numpy(scores), torch.from_numpy(target), torch.from_numpy(others))
    assert found == pytest.approx(literal(scores, target, others), nan_ok=True)


@given(maps, masks)
def test_turning_every_sign_turns_right_into_wrong(scores, mask):
    pixels, target = torch.from_numpy(scores), torch.from_numpy(mask)
    there, back = sign_shares(pixels, target, ~target), sign_shares(-pixels, target, ~target)
    for one, other in ((there.sign_accuracy, back.sign_accuracy), (there.right_share, back.right_share)):
        assert other == pytest.approx(1 - one, nan_ok=True)
    swapped = sign_shares(-pixels, ~target, target)
    assert swapped.right_share == pytest.approx(there.right_share, nan_ok=True)


def test_a_map_without_negative_scores_tells_no_side():
    found = sign_shares(torch.rand(16, 16, generator=torch.Generator().manual_seed(0)), LEFT, ~LEFT)
    assert found.sign_accuracy == 0.5
    assert math.isnan(found.negative_on_others)
    assert found.right_share == pytest.approx(found.positive_on_target)


def test_what_two_classes_claim_belongs_to_neither():
    own, others = sides({3: EDGE, 5: ~LEFT, 8: torch.zeros_like(LEFT)}, 3)
    assert own.equal(LEFT)
    assert others.equal(~EDGE)
    with pytest.raises(OptionError, match="regions of class 7 and of another; there are those of 3"):
        sides({3: LEFT}, 7)


def test_the_protocol_asks_for_the_other_class_and_takes_the_mean():
    own = torch.tensor([[3.0, 1.0, -1.0, -3.0]]).expand(4, 4).contiguous()
    other = torch.tensor([[1.0, 1.0, 1.0, 1.0]]).expand(4, 4).contiguous()
    asked = []

    def explain(question):
        asked.append((question.targets, question.images.shape, question.randomised))
        return other[None]

    one = case(regions={1: LEFT, 0: ~LEFT})
    found = ask("signs", one, own, explain)
    assert asked == [([0], (1, 3, 16, 16), 0)]
    # target: all right; other class: half of its mass on its own side, nothing negative
    assert {name: value for name, _, value in found} == pytest.approx(
        {
            "sign_accuracy": (1 + 0.5) / 2,
            "right_share": (1 + 0.5) / 2,
            "positive_on_target": (1 + 0.5) / 2,
            "negative_on_others": 1.0,  # nothing to tell of the other map
            "likeness": math.nan,  # nor anything to correlate with
        },
        nan_ok=True,
    )
    alone = {name: value for name, _, value in ask("signs", one, own, classes="target")}
    assert alone == dict.fromkeys(Signs._fields, 1.0)
    table = summary("signs", [found, found])
    assert table["sign accuracy"].value() == 0.75
    assert table["likeness of classes"].better == -1


def test_pictures_of_one_class_and_targets_without_region_do_not_count():
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    for one, classes in (
        (case(regions={1: LEFT}), "all"),
        (case(regions={1: LEFT, 0: torch.zeros_like(LEFT)}), "all"),
        (case(regions={7: LEFT, 0: ~LEFT}), "target"),
    ):
        assert all(math.isnan(row.value) for row in ask("signs", one, scores, classes=classes))
    found = ask("signs", case(regions={7: LEFT, 0: ~LEFT}), scores, lambda q: torch.stack([scores] * 2))
    assert found[-1].value == 1.0  # the same map for both classes
    assert found[0].value == pytest.approx(0.5)  # and so one side's gain is the other's loss


def test_an_unknown_word_is_refused():
    with pytest.raises(OptionError, match="classes='both' cannot be asked about; choose one of all, target"):
        ask("signs", case(regions={1: LEFT, 0: ~LEFT}), torch.ones(4, 4), classes="both")
