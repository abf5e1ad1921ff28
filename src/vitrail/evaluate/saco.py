"""SaCo (Wu et al., CVPR 2024): do pixels of higher salience move the prediction more, and by how much more?"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import OptionError

__all__ = ["group_ends", "salience_consistency"]


def group_ends(places: int, groups: int) -> list[int]:
    """Where each of `groups` equal groups ends; sizes differ by one at most.

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
    """From −1 to 1: Σ_{i<j} ±(s_i − s_j) / Σ_{i<j} |s_i − s_j|, with plus where the effect of i is not below that of j.

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
