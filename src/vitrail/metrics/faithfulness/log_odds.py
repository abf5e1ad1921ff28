"""Log-odds (Shrikumar et al. 2017; Chen et al. 2019): log( p(x_k) / p(x) ) once a share of the places has gone."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ...outputs import LOGITS, Output
from ..aggregation import Curves, Statistic
from ..protocol import (
    ORDERS,
    Case,
    Evaluation,
    Measured,
    check_map,
    check_one_of,
    check_shares,
    class_asked,
    register_protocol,
)
from ..removal import Removal, filling, perturbation_batch, pixel_ranks, places_of

__all__ = ["log_odds", "log_odds_of_removal"]


def log_odds(
    before: Float[Tensor, " classes"], after: Float[Tensor, "steps classes"], asked: int, output: Output = LOGITS
) -> Float[Tensor, " steps"]:
    """Returns ln(p(x_k) / p(x)), below zero where the class has lost (Shrikumar et al. 2017; Chen et al. 2019).

    Raises:
        OutputKindError: for a model that gives no probabilities.

    Example:
        >>> import torch
        >>> round(float(log_odds(torch.zeros(2), torch.tensor([[-50.0, 50.0]]), 0)), 3)
        -99.307
    """
    return output.log_probabilities(after.double())[:, asked] - output.log_probabilities(before.double())[asked]


def summarise_odds(curves: Curves, *, order: str = "morf", **_: object) -> dict[str, Statistic]:
    """Returns the mean over the shares: better low where the most relevant go first, else better high."""
    odds = curves.values[f"{order}.log_odds"].mean(axis=1)
    return {f"log-odds, {order}": Statistic.mean(odds, -1 if order == "morf" else 1)}


@register_protocol("log_odds", summarise=summarise_odds, reference="Shrikumar et al. 2017; Chen et al. 2019 (LOdds)")
def log_odds_of_removal(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    shares: Sequence[float] = (0.2,),
    unit: str = "patch",
    order: str = "morf",
    fill: str = "black",
    target: str = "explained",
) -> Evaluation:
    """How far the logarithm of the probability moves when a fixed share of the most (or least) relevant places goes.

    `unit`: whole patches, or pixels of the enlarged map.

    Raises:
        OptionError: for a word that is not known, or shares that are not ascending between 0 and 1.
    """
    check_one_of("unit", unit, ("pixel", "patch"))
    check_one_of("order", order, ORDERS)
    check_shares(shares)
    check_map(scores, case.size)
    asked = class_asked(case, target)
    places = places_of(case, scores, unit)
    ranks = pixel_ranks(places, case.size, highest=order == "morf")
    until = [int(places.numel() * share) for share in shares]
    logits = yield perturbation_batch(Removal(case.image, filling(case, fill), ranks, until))
    odds = log_odds(case.logits, logits.to(case.logits), asked, case.output).tolist()
    return [Measured(f"{order}.log_odds", float(share), value) for share, value in zip(shares, odds, strict=True)]
