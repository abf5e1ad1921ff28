"""New tokens from those of a grid: windows that slide over it, boxes that fill it, places between its own."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedAttentionError
from .tokens import MIXED, NONE, Tokens

__all__ = ["between", "boxes", "one_channel", "overlaps", "windows"]


def one_channel(
    tokens: Tokens, labels: Float[Tensor, "images channels rows cols"]
) -> Float[Tensor, "images 1 rows cols"]:
    """Returns one label for each place, whose channels are joined."""
    same = bool((labels == labels[:, :1]).all())
    return labels[:, :1] if same else tokens.merge(labels.movedim(1, -1))[:, None]


def windows(
    tokens: Tokens,
    grid: Float[Tensor, "images 1 rows cols"],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> Float[Tensor, "images 1 new_rows new_cols"]:
    """Returns the labels of what a convolution or a pooling makes, each of its support; `size` is new rows, columns."""
    # With ceil_mode the last window juts out.
    beyond = [
        max(0, (new - 1) * step + gap * (extent - 1) + 1 - old - 2 * margin)
        for new, step, gap, extent, old, margin in zip(
            size, stride, dilation, kernel, grid.shape[-2:], padding, strict=True
        )
    ]
    grid = F.pad(grid, (0, beyond[1], 0, beyond[0]))
    columns = F.unfold(grid, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    return tokens.merge(columns.transpose(1, 2)).view(-1, 1, *size)


def boxes(
    tokens: Tokens, labels: Float[Tensor, "images channels frames rows cols"], kernel: Sequence[int]
) -> Float[Tensor, "images 1 new_frames new_rows new_cols"]:
    """Returns the labels of what boxes of time, height and width make that lie side by side, as those of patches."""
    for at, size in enumerate(kernel):
        labels = labels.unfold(2 + at, size, size)
    return tokens.merge(labels.movedim(1, -1).flatten(4))[:, None]


def overlaps(
    tokens: Tokens,
    labels: Float[Tensor, "*images taps_and_channels windows"],
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Float[Tensor, "*images 1 rows cols"]:
    """Returns the labels of a grid that windows which overlap are added up on.

    What attention wrote is added whole, other tokens are averaged.
    """
    rows, cols = size
    number = torch.arange(1.0, rows * cols + 1).double().view(1, 1, rows, cols)
    place = F.unfold(number, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))[0].long()
    device, found = labels.device, labels.reshape(-1, *labels.shape[-2:]).cpu().unflatten(1, (-1, len(place)))
    if bool((found != found[:, :1]).any()) or bool((found == MIXED).any()):
        raise UnsupportedAttentionError("windows whose channels are of several tokens are added up, which has no rule")
    image, tap, window = ((found[:, 0] != NONE) & (place > 0)).nonzero(as_tuple=True)
    parent = found[image, 0, tap, window].long()
    made, child = (image * rows * cols + place[tap, window] - 1).unique(return_inverse=True)
    written = tokens.of("branch")[parent]
    others = torch.zeros(len(made), dtype=torch.long).index_add_(0, child, (~written).long())
    weight = torch.where(written, 1.0, 1 / others[child].double())
    grid = torch.zeros(len(found) * rows * cols, dtype=torch.float64)
    grid[made] = tokens.make(child, parent, weight, others == 0).double()
    return grid.view(*labels.shape[:-2], 1, rows, cols).to(device)


def between(
    tokens: Tokens,
    grid: Float[Tensor, "images 1 rows cols"],
    vertical: Float[Tensor, "new_rows rows"],
    horizontal: Float[Tensor, "new_cols cols"],
) -> Float[Tensor, "images 1 new_rows new_cols"]:
    """Returns the labels of places that are weighted means of a grid's, rows and columns by themselves.

    A place is made of those tokens that its weights are above zero for, in their proportion.
    """
    if bool((grid == MIXED).any()):
        raise UnsupportedAttentionError("a mixture of all tokens is resampled, which has no rule")
    device, grid = grid.device, grid[:, 0].cpu()
    (y_share, y), (x_share, x) = (
        one.clamp(min=0).topk(int((one > 0).sum(dim=1).max()), dim=1) for one in (vertical, horizontal)
    )
    share = (y_share[:, None, :, None] * x_share[:, None]).flatten(2)
    parents = grid[:, y[:, None, :, None], x[:, None]].flatten(3)
    share = torch.where(parents == NONE, 0.0, share.expand(parents.shape))
    low = torch.where(share > 0, parents, torch.inf).amin(dim=-1)
    high = torch.where(share > 0, parents, NONE).amax(dim=-1)
    found, several = high.clone(), low < high
    if bool(several.any()):
        share, parents = share[several], parents[several]
        child, at = (share > 0).nonzero(as_tuple=True)
        parent, weight = parents[child, at].long(), (share / share.sum(dim=-1, keepdim=True))[child, at]
        whole = torch.ones(len(share), dtype=torch.bool)
        whole[child[~tokens.of("branch")[parent]]] = False
        found[several] = tokens.make(child, parent, weight, whole).double()
    return found[:, None].to(device)
