"""Which pixels each token of the first attention takes, read from the gradient between the two.

Tokens are distinguished by their code: every token belongs to half of n groups, no two tokens to the same ones. One
backward pass through the stem per group says which pixels that group reaches; a pixel that is reached by exactly half
of the groups belongs to one token, and the groups name it. Log₂-many backward passes of the stem serve all tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .calls import AttentionCall

__all__ = ["PixelGradient", "Places", "StemObserver", "column_by_column", "find_places", "row_by_row"]

PixelGradient: TypeAlias = Callable[[Float[Tensor, " tokens"]], Float[Tensor, "channels height width"]]
"""The gradient, at the pixels, of a random mixture of the tokens with these weights."""

# A pixel whose gradient is this much smaller than its largest is not reached: norms over the whole image leave traces.
TRACE = 0.03
# Fewer pixels than these out of reach of half of the tokens: their regions overlap, and no pixel has one token.
APART = 0.15
# Heads that share fewer of the pixels that they take from than this are windows.
SHARED = 0.1
# How far what a ramp over the tokens leaves at the pixels may be from the ramp (relative, RMS).
LIKE_A_RAMP = 0.22


@dataclass(frozen=True, eq=False)
class Places:
    """Where the tokens of the first attention lie in the image.

    `grid` is rows, columns of patches; `first` the number of tokens before them, and `order[i]` the place among the
    patch tokens of the patch at cell i of the grid, row after row (None: they stand in that order). `carrying` counts
    the tokens that carry anything of the image, and `counted` says whether they were counted one by one. `problem` says
    why there is no such grid; the rest is then zero.
    """

    carrying: int
    grid: tuple[int, int] = (0, 0)
    first: int = 0
    order: Int[Tensor, " patches"] | None = None
    problem: str | None = None
    counted: bool = False


class StemObserver:
    """Calls `look(tokens, gradient)` at the first attention, and ends the graph there.

    The image must ask for a gradient; nothing behind the first attention is recorded. `first` keeps something of every
    token there, to be compared with another pass; `windows` says whether its heads take from different pixels.
    """

    def __init__(self, image: Tensor, look: Callable[[int, PixelGradient], None]) -> None:
        self.image, self.look = image, look
        self.first: Tensor | None = None
        self.windows = False

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        if self.first is None:
            self._begin(call.key, call.keys)
        return call.detached().output()

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        if self.first is None:
            self._begin(scores, scores.shape[-1], joined=True)
        return torch.softmax(scores.detach(), dim=-1)

    def _begin(self, given: Tensor, tokens: int, joined: bool = False) -> None:
        self.first = given.detach()
        # Windows, and queries of another set than the keys, are told by the shapes of all attentions.
        if given.requires_grad and len(given) == 1 and given.shape[2] == tokens:
            mixture = torch.randn(given.shape, generator=torch.Generator().manual_seed(2)).to(given)

            def gradient(weights: Tensor) -> Tensor:
                weights = weights.to(given)
                # A score joins two tokens: only those within the weighted ones keep to them.
                both = weights[:, None] * weights if joined else weights[:, None]
                (found,) = torch.autograd.grad(given, self.image, mixture * both, retain_graph=True, allow_unused=True)
                return torch.zeros_like(self.image[0]) if found is None else found[0].float()

            self.windows = given.shape[1] > 1 and _apart(given[:, 0], given[:, -1], self.image)
            self.look(tokens, gradient)
        torch.set_grad_enabled(False)


def _apart(one: Tensor, other: Tensor, image: Float[Tensor, "images channels height width"]) -> bool:
    """Whether two heads take from different pixels: then they are windows, which were joined with the heads."""
    read = []
    for given in (one, other):
        mixture = torch.randn(given.shape, generator=torch.Generator().manual_seed(4)).to(given)
        (found,) = torch.autograd.grad(given, image, mixture, retain_graph=True, allow_unused=True)
        if found is None or not bool(found.any()):
            return False
        size = found[0].float().abs().sum(dim=0)
        read.append(size / size.sum())
    return float(torch.minimum(*read).sum()) < SHARED


def find_places(tokens: int, gradient: PixelGradient, grids: Sequence[tuple[int, int]]) -> Places | None:
    """Returns the places of `tokens` tokens; None where no gradient leads to the pixels.

    `grids` are those that the tokens may form, most likely first: they are tried where pixels are shared by tokens.
    """
    everything = gradient(torch.ones(tokens))
    if not bool(everything.any()):
        return None
    exact = _by_code(tokens, gradient, everything)
    return exact if exact is not None else _by_ramp(tokens, gradient, everything, grids)


def _codes(tokens: int) -> Bool[Tensor, "groups tokens"]:
    groups = next(n for n in range(2, 64) if comb(n, n // 2) >= tokens)
    code = torch.zeros(groups, tokens, dtype=torch.bool)
    for token, chosen in enumerate(islice(combinations(range(groups), groups // 2), tokens)):
        code[list(chosen), token] = True
    return code


def _by_code(tokens: int, gradient: PixelGradient, everything: Float[Tensor, "channels height width"]) -> Places | None:
    """Places by the pixels that a token has for itself; None where tokens share most of them."""
    codes = _codes(tokens)
    size = everything.abs()
    read = size > 0
    count = torch.zeros(size.shape, dtype=torch.uint8, device=size.device)
    name = torch.zeros(size.shape, dtype=torch.int32, device=size.device)
    for group, members in reversed(list(enumerate(codes))):  # the last group changes most often from token to token
        reached = gradient(members.float()).abs() > TRACE * size
        if group == len(codes) - 1 and float((~reached & read).sum()) < APART * float(read.sum()):
            return None
        count += reached
        name += reached.int() << group
    alone = read & (count == len(codes) // 2)
    numbers = (codes.long() << torch.arange(len(codes))[:, None]).sum(dim=0)
    by_number, token_of = numbers.sort()
    channels, height, width = size.shape
    found = name[alone].long().cpu()
    at = torch.searchsorted(by_number.contiguous(), found.contiguous()).clamp(max=tokens - 1)
    known = by_number[at] == found
    token = token_of[at[known]]
    row = torch.arange(height)[:, None].expand(channels, height, width)[alone.cpu()][known]
    col = torch.arange(width).expand(channels, height, width)[alone.cpu()][known]
    pixels = torch.bincount(token, minlength=tokens)
    if not len(token):
        return None
    carries = pixels > 0.05 * float(pixels[pixels > 0].double().median())
    centre = torch.stack(
        [torch.bincount(token, weights=where.double(), minlength=tokens) / pixels.clamp(min=1) for where in (row, col)],
        dim=1,
    )
    if bool((~carries).any()) and bool((~carries).sum() < tokens):
        rest = gradient((~carries).float()).square().sum()
        if float(rest) > TRACE**2 * float(size.square().sum()) * float((~carries).sum()) / tokens:
            # Tokens without a pixel of their own that depend on the image nevertheless.
            if int(carries.sum()) < tokens / 2:
                return None
            count_rest = int((~carries).sum())
            return Places(
                tokens, problem=f"{count_rest} of them take from the same pixels as others, or from the whole image"
            )
    return _as_grid(carries, centre)


def _as_grid(carries: Bool[Tensor, " tokens"], centre: Float[Tensor, "tokens 2"]) -> Places:
    carrying = int(carries.sum())
    first = int(carries.int().argmax())
    if not bool(carries[first : first + carrying].all()):
        return Places(carrying, problem="they do not follow each other: other tokens stand between them", counted=True)
    places = centre[first : first + carrying]
    rows, cols = _ranks(places[:, 0]), _ranks(places[:, 1])
    grid = int(rows.max()) + 1, int(cols.max()) + 1
    cell = rows * grid[1] + cols
    if len(cell.unique()) < carrying:
        return Places(
            carrying,
            problem=f"they lie over {len(cell.unique())} different places of the image, several over the same pixels, "
            "as frames of a video or channels that are embedded one by one do (there grid=(frames × rows, columns) "
            "lays them one below the other)",
            counted=True,
        )
    if carrying != grid[0] * grid[1]:
        return Places(carrying, problem=f"they do not fill a grid of {grid[0]}×{grid[1]} places", counted=True)
    order = cell.argsort()
    in_order = bool((order == torch.arange(carrying)).all())
    return Places(carrying, grid, first, None if in_order else order, counted=True)


def _ranks(position: Float[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
    """The number of the row (or column) that each position belongs to."""
    ordered, index = position.sort()
    gaps = ordered.diff()
    if not len(gaps) or float(gaps.max()) < 0.5:
        return torch.zeros(len(position), dtype=torch.long)
    ranks = torch.zeros(len(position), dtype=torch.long)
    ranks[index[1:]] = (gaps > 0.4 * gaps.max()).long().cumsum(0)
    return ranks


def row_by_row(grid: tuple[int, int]) -> Int[Tensor, " patches"]:
    """Returns the order in which the patch at each cell is the token of the same number."""
    return torch.arange(grid[0] * grid[1])


def column_by_column(grid: tuple[int, int]) -> Int[Tensor, " patches"]:
    """Returns the order in which tokens run down the columns."""
    rows, cols = grid
    return torch.arange(rows * cols).reshape(cols, rows).T.flatten()


def _by_ramp(
    tokens: int,
    gradient: PixelGradient,
    everything: Float[Tensor, "channels height width"],
    grids: Sequence[tuple[int, int]],
) -> Places | None:
    """Places where tokens overlap: weights that rise over a supposed grid leave such a gradient at the pixels."""
    errors = []
    for grid in dict.fromkeys(grids):
        patches = grid[0] * grid[1]
        if not 0 < patches <= tokens or min(grid) < 2:
            continue
        first = _first_by_gradient(tokens, patches, gradient, everything)
        if first is None:
            errors.append(f"tokens beside a grid of {grid[0]}×{grid[1]} carry the image, too")
            continue
        down, along = torch.linspace(0.2, 1, grid[0])[:, None], torch.linspace(0.2, 1, grid[1])
        for order in (row_by_row(grid), column_by_column(grid)):
            for ramp in (down.expand(grid), along.expand(grid)):
                weights = torch.zeros(tokens)
                weights[first + order] = ramp.flatten()
                if _unlike(_coarse_ratio(gradient(weights), everything, grid), ramp) > LIKE_A_RAMP:
                    break
            else:
                return Places(patches, grid, first, None if bool((order.diff() == 1).all()) else order)
        errors.append(
            f"taken for {grid[0]}×{grid[1]} patches, row after row or column after column, they do not lie where they "
            "should"
        )
    return Places(tokens, problem="; ".join(errors) or "no grid fits their number")


def _first_by_gradient(
    tokens: int, patches: int, gradient: PixelGradient, everything: Float[Tensor, "channels height width"]
) -> int | None:
    """How many tokens stand before a grid such that no other token carries the image."""
    others = tokens - patches
    if not others:
        return 0
    floor = TRACE**2 * float(everything.square().sum()) * others / tokens
    for first in dict.fromkeys((others, 0, *range(others))):
        weights = torch.ones(tokens)
        weights[first : first + patches] = 0
        if float(gradient(weights).square().sum()) <= floor:
            return first
        if others > 2 and first == 0:
            break
    return None


def _coarse_ratio(
    seen: Float[Tensor, "channels height width"],
    everything: Float[Tensor, "channels height width"],
    grid: tuple[int, int],
) -> Float[Tensor, "rows cols"]:
    coarse = min(grid[0], 8), min(grid[1], 8)
    # What stands at a pixel, in multiples of what stands there where all tokens weigh one: about their mean weight.
    along, size = (
        F.adaptive_avg_pool2d((one * everything).sum(dim=0, keepdim=True), coarse)[0] for one in (seen, everything)
    )
    return (along / size.clamp(min=torch.finfo(torch.float32).tiny)).cpu()


def _unlike(seen: Float[Tensor, "rows cols"], ramp: Float[Tensor, "grid_rows grid_cols"]) -> float:
    wanted = F.adaptive_avg_pool2d(ramp[None], (seen.shape[0], seen.shape[1]))[0]
    return float((seen / seen.mean() - wanted / wanted.mean()).square().mean().sqrt())
