"""Insertion and deletion (Petsiuk, Das, Saenko 2018): the answer while an image appears or disappears, bit by bit.

places  = step_ends(50176, step=224)                      0, 224, … 50176: how many pixels have changed at each score
number  = mean_height(curve)                              the area under the scores, from 0 to 1
"""

from jaxtyping import Float
from torch import Tensor

from ..errors import OptionError

__all__ = ["mean_height", "step_ends"]


def step_ends(places: int, *, step: int, skip: int = 0) -> list[int]:
    """How many places have changed at each score: none, `step`, twice that, … all; the first `skip` are left out.

    Raises:
        OptionError: when fewer than two scores are left, which have no area.

    Example:
        >>> step_ends(10, step=4), step_ends(10, step=4, skip=1)
        ([0, 4, 8, 10], [4, 8, 10])
    """
    if step < 1 or skip < 0:
        raise OptionError(f"step={step} must be at least 1 place, and skip={skip} at least 0")
    ends = [*range(0, places, step), places][skip:]
    if len(ends) < 2:
        raise OptionError(f"step={step} with skip={skip} leaves {len(ends)} scores of {places} places; two are least")
    return ends


def mean_height(curve: Float[Tensor, "*batch scores"]) -> Float[Tensor, "*batch"]:
    """(Σ − first/2 − last/2) / (n − 1), the trapezoid over equal steps from 0 to 1.

    The last step counts as much as the others, also where it changes fewer places.

    Example:
        >>> import torch
        >>> float(mean_height(torch.tensor([0.0, 0.5, 1.0])))
        0.5
    """
    return (curve.sum(dim=-1) - curve[..., 0] / 2 - curve[..., -1] / 2) / (curve.shape[-1] - 1)
