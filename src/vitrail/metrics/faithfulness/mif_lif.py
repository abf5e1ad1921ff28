"""MIF and LIF: accuracy while the most influential, or the least influential, places are deleted, and their gap."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ..aggregation import Curves, Statistic
from ..protocol import SCORES, Case, Evaluation, Measured, answers, check_one_of, class_asked, register_protocol
from ..removal import morf_lerf
from .perturbation import SHARES

__all__ = ["mif_lif"]

FIRST = ("mif", "lif")


def summarise_mif_lif(curves: Curves, *, score: str = "hit", **_: object) -> dict[str, Statistic]:
    """Returns the mean over the shares of each, and the gap: better low, high and high."""
    mif, lif = (curves.values[f"{first}.{score}"].mean(axis=1) for first in FIRST)
    return {
        f"MIF {score}": Statistic.mean(mif, -1),
        f"LIF {score}": Statistic.mean(lif),
        "SRG": Statistic.mean(lif - mif),
    }


@register_protocol(
    "mif_lif",
    summarise=summarise_mif_lif,
    reference="Blücher, Vielhaben, Strodthoff 2024 (SRG); Mehri et al. 2025 (LibraGrad)",
)
def mif_lif(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    unit: str = "patch",
    fill: str = "black",
    score: str = "hit",
    target: str = "predicted",
    shares: Sequence[float] = SHARES,
) -> Evaluation:
    """Whether the class still wins when the most (MIF) or the least influential places (LIF) go, and the gap (SRG).

    MIF is published as the share of lost answers too, which is one less what is told here. `unit`: whole patches,
    pixels of the enlarged map, or tokens left out. `score`: "hit", "probability" or "output" (the
    model's own number).

    Raises:
        OptionError: for a word that is not known, or shares that are not ascending between 0 and 1.
    """
    check_one_of("score", score, SCORES)
    asked = class_asked(case, target)
    logits = yield from morf_lerf(case, scores, unit, fill, shares)
    values = answers(case, logits.flatten(0, 1), asked, score).view(len(FIRST), -1).tolist()
    return [
        Measured(f"{first}.{score}", float(share), value)
        for first, row in zip(FIRST, values, strict=True)
        for share, value in zip(shares, row, strict=True)
    ]
