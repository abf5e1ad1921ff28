"""Single deletion: do the scores of the cells of a grid rank the drops of the class's output when each is deleted?

score = Spearman's ρ( Σ_cell S, f(x) − f(x without the cell) )          (Hesse, Schaub-Meyer, Roth 2024, NeurIPS: IDSDS)

In-domain only for a model that has seen such deletions in training, as `bestiary/deletion` has: another may answer to
the hole instead of to what is missing.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import OptionError
from ..aggregation import Curves, Statistic
from ..maps import rank_correlation, spread
from ..protocol import Case, Evaluation, Measured, answers, check_count, check_map, class_asked, register_protocol
from ..removal import Removal, filling, perturbation_batch

__all__ = ["cell_numbers", "cell_scores", "idsds"]


def cell_numbers(size: tuple[int, int], cells: int) -> Int[Tensor, "height width"]:
    """Returns the number of the cell that each pixel belongs to, row by row; pixels left over have cells².

    Example:
        >>> cell_numbers((2, 5), 2).tolist()
        [[0, 0, 1, 1, 4], [2, 2, 3, 3, 4]]
    """
    rows, cols = (torch.arange(length) // (length // cells) for length in size)
    numbers = rows[:, None] * cells + cols
    return numbers.masked_fill((rows[:, None] >= cells) | (cols >= cells), cells**2).int()


def cell_scores(pixels: Float[Tensor, "height width"], cells: int) -> Float[Tensor, " cells"]:
    """Returns the sum of the scores in each of cells × cells cells.

    Example:
        >>> cell_scores(torch.arange(8.0).view(2, 4), 2).tolist()
        [1.0, 5.0, 9.0, 13.0]
    """
    numbers = cell_numbers((pixels.shape[0], pixels.shape[1]), cells).flatten().long().to(pixels.device)
    sums = torch.zeros(cells**2 + 1, dtype=torch.float64, device=pixels.device)
    return sums.scatter_add(0, numbers, pixels.flatten().double())[:-1]


def summarise_idsds(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the mean over images: better high."""
    return {"IDSDS": Statistic.mean(curves.single("rank"), 1)}


@register_protocol(
    "idsds", summarise=summarise_idsds, reference="Hesse, Schaub-Meyer, Roth 2024 (NeurIPS)", signed=True
)
def idsds(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    cells: int = 4,
    fill: str = "zero",
    target: str = "explained",
    score: str = "output",
) -> Evaluation:
    """Whether cells of a higher score lower the class's output more when each is deleted by itself: a rank correlation.

    The image is divided into `cells` × `cells`, each in turn shows `fill`, and Spearman's correlation of the drops with
    the sums of the scores is the result, from −1 to 1. In-domain for a model at home with such deletions. A map with
    the same sum in every cell ranks nothing, and does not count.

    Raises:
        OptionError: for a word that is not known, or more cells than pixels.
    """
    check_count("cells", cells, least=2)
    if cells > min(case.size):
        raise OptionError(f"cells={cells} a side of an image of {case.size[0]}×{case.size[1]} pixels have no pixel")
    check_map(scores, case.size)
    asked = class_asked(case, target)
    count, numbers = cells**2, cell_numbers(case.size, cells)
    removal = Removal(case.image, filling(case, fill), numbers, range(1, count + 1), range(count))
    logits = yield perturbation_batch(removal)
    watched = answers(case, torch.cat([case.logits[None], logits.to(case.logits)]), asked, score)
    sums = cell_scores(spread(scores, case.size), cells)
    return [Measured("rank", None, rank_correlation(sums.to(watched), watched[0] - watched[1:]))]
