"""A patch's score shared among its cells, by what their pixels add to the scalar that was differentiated.

The gradient that gives ∇A goes on to the pixels. With x the input and ∇x its gradient, a cell's contribution is
g_c = Σ_{i ∈ c} x_i ∇x_i. What counts of it is what has the sign of the patch's score S, and of that score the cell is
given

    S_c = S · (p_c + w p̄) / ((1 + w) p̄),    p_c = (g_c · sign S)⁺,  p̄ its mean over the patch's cells.

So the mean over a patch is the patch's score, and a patch of which no cell argues as the whole keeps it everywhere.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .context import AttributionContext

__all__ = ["cell_contributions", "enlarged", "shared_within"]

MIXING = 0.5  # w: with none, one bright pixel would take all; chosen on scenes of the bestiary that judge nothing


def enlarged(maps: Float[Tensor, "*some rows cols"], cells: int) -> Float[Tensor, "*some cell_rows cell_cols"]:
    """Returns maps in which each patch is `cells` × `cells` of its own score.

    Example:
        >>> enlarged(torch.tensor([[1.0, 2.0]]), 2)
        tensor([[1., 1., 2., 2.],
                [1., 1., 2., 2.]])
    """
    return maps.repeat_interleave(cells, dim=-2).repeat_interleave(cells, dim=-1)


def cell_contributions(
    context: AttributionContext, cells: int
) -> Float[Tensor, "images questions cell_rows cell_cols"]:
    """Returns Σ x ∇x over each cell, for every question that the context has differentiated."""
    slopes = torch.stack(context.input_gradients, dim=1)
    pixels = (slopes * context.images[:, None]).sum(dim=2)
    pixels = pixels if pixels.dtype == torch.float64 else pixels.float()
    layout = context.layout
    size = (pixels.shape[-2] // (layout.rows * cells), pixels.shape[-1] // (layout.cols * cells))
    return avg_pool2d(pixels, size) * (size[0] * size[1])


def shared_within(
    maps: Float[Tensor, "images questions rows cols"],
    contributions: Float[Tensor, "images questions cell_rows cell_cols"],
    mixing: float = MIXING,
) -> Float[Tensor, "images questions cell_rows cell_cols"]:
    """Returns S_c: the maps of patches at the cells of the contributions.

    Example:
        >>> shared_within(torch.tensor([[[[3.0]]]]), torch.tensor([[[[2.0, -1.0], [0.0, 0.0]]]]))
        tensor([[[[9., 1.],
                  [1., 1.]]]])
    """
    cells = contributions.shape[-1] // maps.shape[-1]
    scores = enlarged(maps, cells)
    part = torch.where(scores < 0, -contributions, contributions).clamp(min=0)
    mean = enlarged(avg_pool2d(part, cells), cells)
    share = (part / mean.clamp(min=torch.finfo(mean.dtype).tiny) + mixing) / (1 + mixing)
    return scores * torch.where(mean > 0, share, 1.0)
