"""SaCo (Wu et al., CVPR 2024): do pixels of higher salience move the prediction more, and by how much more?"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import OptionError
from ..aggregation import Curves, Statistic
from ..maps import enlarged
from ..protocol import Case, Evaluation, Measured, answers, check_count, check_map, class_asked, register_protocol
from ..removal import Removal, filling, perturbation_batch, pixel_ranks

__all__ = ["group_ends", "saco", "salience_consistency"]


def group_ends(places: int, groups: int) -> list[int]:
    """Returns the end of each of `groups` equal groups; sizes differ by one at most.

    Raises:
        OptionError: for fewer than two groups, or more than there are places.

    Example:
        >>> group_ends(10, 4)
        [2, 5, 7, 10]
    """
    if not 2 <= groups <= places:
        raise OptionError(f"groups={groups} of {places} places cannot be compared; give from 2 to {places}")
    return [places * (group + 1) // groups for group in range(groups)]


def salience_consistency(salience: Float[Tensor, " groups"], effect: Float[Tensor, " groups"]) -> Float[Tensor, ""]:
    """Returns Σ_{i<j} ±(s_i − s_j) / Σ_{i<j} |s_i − s_j| in [−1, 1], plus where the effect of i is not below that of j.

    `salience` is that of each group, descending; `effect` by how much the prediction falls without the group. Groups
    of one and the same salience tell nothing: 0.

    Example:
        >>> float(salience_consistency(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.5, 0.1, 0.2])))
        0.5
    """
    higher, lower = torch.triu_indices(len(salience), len(salience), offset=1).unbind()
    apart = salience[higher] - salience[lower]
    signed = torch.where(effect[higher] >= effect[lower], apart, -apart)
    total = apart.abs().sum()
    return signed.sum() / total if total > 0 else torch.zeros_like(total)


def summarise_saco(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the mean over images: better high."""
    return {"SaCo": Statistic.mean(curves.single("saco"))}


@register_protocol("saco", summarise=summarise_saco, reference="Wu, Kang, Tang, Hong, Yan 2024 (CVPR, SaCo)")
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
    check_map(scores, case.size)
    asked = class_asked(case, target)
    large = enlarged(scores, case.size).double()
    ranks = pixel_ranks(large, case.size)
    ends = group_ends(large.numel(), groups)
    starts = [0, *ends[:-1]]
    logits = yield perturbation_batch(Removal(case.image, filling(case, fill), ranks, ends, starts))
    watched = answers(case, torch.cat([case.logits[None], logits.to(case.logits)]), asked, score)
    drops = watched[0] - watched[1:]
    ranked = large.flatten().sort(descending=True).values
    salience = torch.stack([ranked[start:end].sum() for start, end in pairwise([0, *ends])])
    return [Measured("saco", None, float(salience_consistency(salience.to(drops), drops)))]
