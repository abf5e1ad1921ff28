"""The highest scores taken out first, and the lowest: the questions that perturbation and MIF/LIF have in common."""

from collections.abc import Generator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..case import Case
from ..perturbation import kept_tokens, ranking
from ..questions import Query, TokenSubsetQuery
from ..removal import Removal, perturbation_batch, pixel_ranks
from .fills import check_fill, filling
from .options import check_one_of, check_shares, places_of
from .registry import check_map

__all__ = ["UNITS", "morf_lerf"]

UNITS = ("pixel", "patch", "token")


def morf_lerf(
    case: Case, scores: Float[Tensor, "rows cols"], unit: str, fill: str, shares: Sequence[float]
) -> Generator[Query, Tensor, Tensor]:
    """What the model says at each share, the highest scores first and the lowest first: "ways shares classes".

    Of the places int(share · places) go: pixels of the bilinearly enlarged map, or patches, show what `fill` says;
    tokens leave the sequence. The answer has the originals' dtype and device.

    Raises:
        OptionError: for a unit or fill that is not known, or shares that are not ascending between 0 and 1.
    """
    check_one_of("unit", unit, UNITS)
    check_fill(fill)
    check_shares(shares)
    check_map(case, scores)
    places = places_of(case, scores, unit)
    if unit == "token":
        orders = [ranking(places.flatten(), highest=highest) for highest in (True, False)]
        answered = []
        for share in shares:  # the rows of one question are of one length, so each share is a question of its own
            kept = torch.stack([kept_tokens(order, share, prefix=0) for order in orders])
            answered.append((yield TokenSubsetQuery(case.image, kept)))
        return torch.stack(answered, dim=1).to(case.logits)
    ground, until = filling(case, fill), [int(places.numel() * share) for share in shares]
    ways = [pixel_ranks(places, case.size, highest=highest) for highest in (True, False)]
    logits = yield perturbation_batch(*(Removal(case.image, ground, turn, until) for turn in ways))
    return logits.unflatten(0, (2, len(shares))).to(case.logits)
