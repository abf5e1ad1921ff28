"""Images made when their turn comes are those that the plain functions make one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.errors import OptionError
from vitrail.metrics.faithfulness.perturbation import perturb
from vitrail.metrics.removal import Removal, perturbation_batch, pixel_ranks


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.sampled_from([1, 2, 3, 6]),
    cols=st.sampled_from([2, 6]),
    share=st.floats(0, 1),
    highest=st.booleans(),
    some=st.booleans(),
)
def test_a_removal_shows_what_perturb_fills(seed, rows, cols, share, highest, some):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, 6, 6, generator=generator)
    scores = torch.randint(-2, 3, (rows, cols), generator=generator).float()  # with many ties
    allowed = torch.rand(rows, cols, generator=generator) > 0.4 if some else None
    turn = pixel_ranks(scores, (6, 6), highest=highest, allowed=allowed)
    count = int(rows * cols) if allowed is None else int(allowed.sum())
    made = Removal(image, torch.full_like(image, 0.5), turn, (int(count * share),)).images(range(1))[0]
    torch.testing.assert_close(made, perturb(image, scores, share, highest=highest, fill=0.5, allowed=allowed))


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.integers(1, 5), min_size=1, max_size=4), batch=st.integers(1, 12))
def test_one_question_for_many_curves_holds_them_in_their_order(steps, batch):
    turn = torch.arange(9).view(3, 3)
    removals = [
        Removal(torch.full((1, 3, 3), float(k)), -torch.ones(1, 3, 3), turn, range(n)) for k, n in enumerate(steps)
    ]
    question = perturbation_batch(*removals)
    assert question.count == sum(steps)
    rows = [range(k, min(k + batch, question.count)) for k in range(0, question.count, batch)]
    together = torch.cat([question.make(some) for some in rows])
    torch.testing.assert_close(together, torch.cat([one.images(range(len(one))) for one in removals]))


def test_a_group_can_go_by_itself():
    turn = torch.arange(4).view(1, 4)
    made = Removal(torch.ones(1, 1, 4), torch.zeros(1, 1, 4), turn, (2, 4), (0, 2)).images(range(2))
    assert made[:, 0, 0].tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_a_map_that_does_not_divide_the_image_is_refused():
    with pytest.raises(OptionError, match="map of 4×4 places does not divide an image of 6×6 pixels"):
        pixel_ranks(torch.zeros(4, 4), (6, 6))
