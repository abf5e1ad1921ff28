"""SaCo as a protocol: each tenth of the pixels taken out by itself."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ...metrics.aggregation import Curves, Statistic
from ..case import Case
from ..perturbation import enlarged
from ..questions import Evaluation, Measured
from ..removal import Removal, perturbation_batch, pixel_ranks
from ..saco import group_ends, salience_consistency
from .fills import filling
from .options import answers, check_count, class_asked
from .registry import check_map, register_protocol

__all__ = ["saco"]


def summarise(curves: Curves, **_: object) -> dict[str, Statistic]:
    """The mean over images: better high."""
    return {"SaCo": Statistic.mean(curves.single("saco"))}


@register_protocol("saco", summarise=summarise, reference="Wu, Kang, Tang, Hong, Yan 2024 (CVPR, SaCo)")
def saco(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    groups: int = 10,
    fill: str = "mean",
    target: str = "predicted",
    score: str = "probability",
) -> Evaluation:
    """Whether pixels of higher salience matter more, and by as much: the salience-guided coefficient, from −1 to 1.

    The pixels of the enlarged map fall into `groups` equal groups by rank; each is filled by itself, and its effect is
    what the probability loses, or another `score` as of `insertion`.

    Raises:
        OptionError: for a word that is not known, or groups that cannot be compared.
    """
    check_count("groups", groups, least=2)
    check_map(case, scores)
    asked = class_asked(case, target)
    large = enlarged(scores, case.size).double()
    turn = pixel_ranks(large, case.size)
    ends = group_ends(large.numel(), groups)
    starts = [0, *ends[:-1]]
    logits = yield perturbation_batch(Removal(case.image, filling(case, fill), turn, ends, starts))
    watched = answers(case, torch.cat([case.logits[None], logits.to(case.logits)]), asked, score)
    drops = watched[0] - watched[1:]
    ranked = large.flatten().sort(descending=True).values
    salience = torch.stack([ranked[start:end].sum() for start, end in pairwise([0, *ends])])
    return [Measured("saco", None, float(salience_consistency(salience.to(drops), drops)))]
