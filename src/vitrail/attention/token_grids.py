"""New tokens from those of a grid: what convolutions, pooling and interpolation make of the tokens of their support."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedAttentionError
from .tokens import MIXED, NONE, Tokens

__all__ = ["convolved", "overlaps", "pooled", "pooled_to", "resampled"]

LOCAL = "Convolutions mix neighbouring tokens between its attentions; the map follows the attentions alone."


def convolved(
    tokens: Tokens,
    labels: Float[Tensor, "images channels *places"],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    shape: Sequence[int],
) -> Float[Tensor, "images 1 *new_places"]:
    """Returns the labels of what a convolution over one, two or three dimensions makes; `shape` is the result's.

    Raises:
        UnsupportedAttentionError: for a transposed one that is not over two dimensions, and for one over three whose
            kernels overlap.
    """
    if transposed:
        if len(shape) != 4:
            raise UnsupportedAttentionError("a transposed convolution that is not over two dimensions has no rule")
        return _spread(tokens, labels, kernel, stride, padding, dilation, shape[-2:])
    if len(shape) == 3:
        line = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
        return _slid(tokens, labels[:, :, None], *line, (1, shape[-1]))[:, :, 0]
    if len(shape) == 5:
        if tuple(kernel) != tuple(stride) or any(padding) or set(dilation) != {1}:
            raise UnsupportedAttentionError("a convolution over time whose kernels overlap has no rule")
        return _boxes(tokens, labels, kernel)
    return _slid(tokens, labels, kernel, stride, padding, dilation, shape[-2:])


def pooled(
    tokens: Tokens,
    labels: Float[Tensor, "images channels rows cols"],
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] | bool = 1,
    *,
    dilated: bool,
    size: Sequence[int],
) -> Float[Tensor, "images 1 new_rows new_cols"]:
    """Returns the labels of what pooling makes, given its arguments as PyTorch has them; `size` is new rows, columns.

    The fourth is a dilation where the pooling is `dilated` (of maxima), else another option.
    """
    gaps = _pair(dilation) if dilated else (1, 1)
    return _slid(tokens, labels, _pair(kernel), _pair(stride or kernel), _pair(padding), gaps, size)


def pooled_to(
    tokens: Tokens, labels: Float[Tensor, "images channels rows cols"], size: Sequence[int]
) -> Float[Tensor, "images 1 new_rows new_cols"]:
    """Returns the labels of what adaptive pooling makes; `size` is new rows, columns."""
    grid = _one_channel(tokens, labels)
    old = grid.shape[-2:]
    if tuple(old) == tuple(size):
        return grid
    if old[0] % size[0] or old[1] % size[1]:  # windows that overlap
        weights = (
            F.adaptive_avg_pool1d(torch.eye(n, dtype=torch.float64), new).T for n, new in zip(old, size, strict=True)
        )
        return _between(tokens, grid, *weights)
    step = old[0] // size[0], old[1] // size[1]
    return _windows(tokens, grid, step, step, (0, 0), (1, 1), size)


def resampled(
    tokens: Tokens, labels: Float[Tensor, "images channels rows cols"], resample: Callable[[Tensor], Tensor]
) -> Float[Tensor, "images 1 new_rows new_cols"]:
    """Returns the labels of an interpolation: its weights are what `resample` makes of rows and columns of one."""
    grid = _one_channel(tokens, labels)
    weights = []
    for at, size in enumerate(grid.shape[-2:]):
        unit = torch.eye(size, dtype=torch.float64).view(size, 1, *((size, 1) if at == 0 else (1, size)))
        spread = resample(unit.expand(size, 1, *grid.shape[-2:]).contiguous())
        weights.append((spread[:, 0, :, 0] if at == 0 else spread[:, 0, 0]).T)
    return _between(tokens, grid, *weights)


def _slid(
    tokens: Tokens,
    labels: Float[Tensor, "images channels rows cols"],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> Float[Tensor, "images 1 new_rows new_cols"]:
    """The labels of what slides over a grid: the same where it stays on it, else tokens made of its support."""
    grid = _one_channel(tokens, labels)
    if tuple(stride) == (1, 1) and tuple(grid.shape[-2:]) == tuple(size):
        if tuple(kernel) != (1, 1) and tokens.attended:
            tokens.notes[LOCAL] = None
        return grid
    return _windows(tokens, grid, kernel, stride, padding, dilation, size)


def _spread(
    tokens: Tokens,
    labels: Float[Tensor, "images channels rows cols"],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> Float[Tensor, "images 1 new_rows new_cols"]:
    """The labels of a transposed convolution: a place is made of the tokens whose kernels lie over it."""
    grid = _one_channel(tokens, labels)
    rows, cols = grid.shape[-2:]
    apart = grid.new_zeros(len(grid), 1, (rows - 1) * stride[0] + 1, (cols - 1) * stride[1] + 1)
    apart[:, :, :: stride[0], :: stride[1]] = grid
    around = [gap * (extent - 1) - margin for gap, extent, margin in zip(dilation, kernel, padding, strict=True)]
    return _slid(tokens, apart, kernel, (1, 1), around, dilation, size)


def _one_channel(
    tokens: Tokens, labels: Float[Tensor, "images channels rows cols"]
) -> Float[Tensor, "images 1 rows cols"]:
    """One label for each place, whose channels are joined."""
    same = bool((labels == labels[:, :1]).all())
    return labels[:, :1] if same else tokens.merge(labels.movedim(1, -1))[:, None]


def _windows(
    tokens: Tokens,
    grid: Float[Tensor, "images 1 rows cols"],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> Float[Tensor, "images 1 new_rows new_cols"]:
    """The labels of what is made of windows, each of its support; `size` is new rows, columns."""
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


def _boxes(
    tokens: Tokens, labels: Float[Tensor, "images channels frames rows cols"], kernel: Sequence[int]
) -> Float[Tensor, "images 1 new_frames new_rows new_cols"]:
    """The labels of what boxes of time, height and width make that lie side by side, as those of patches."""
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


def _between(
    tokens: Tokens,
    grid: Float[Tensor, "images 1 rows cols"],
    vertical: Float[Tensor, "new_rows rows"],
    horizontal: Float[Tensor, "new_cols cols"],
) -> Float[Tensor, "images 1 new_rows new_cols"]:
    """The labels of places that are weighted means of a grid's, rows and columns by themselves.

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


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1]) if value else (0, 0)
