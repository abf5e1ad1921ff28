"""How far a photograph may be changed, in whole levels of 8 bits."""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import OptionError

__all__ = ["NORMS", "check_budget", "project", "to_levels"]

NORMS = ("linf", "l2")
_SLACK = 1e-6  # so that a budget written as 8/255 allows eight levels


def check_budget(budget: float | int | None, norm: str) -> None:
    """Refuse a budget that no 8-bit file can keep, or a norm other than "linf" and "l2".

    Both count pixels from 0 to 1: the largest change of any one channel of a pixel, or the root of the sum of squares
    over all of them. The smallest change that a file of 8 bits can hold is 1/255 in either norm.

    Raises:
        OptionError: naming the budget and the smallest that means something.
    """
    if norm not in NORMS:
        raise OptionError(f"norm={norm!r} is not one of {', '.join(NORMS)}")
    if budget is None:
        return
    if not budget > 0:
        raise OptionError(f"budget={budget:g} allows no change; give a number above 0, or leave it out")
    if math.isinf(budget):
        raise OptionError("budget=inf limits nothing; give a finite number, or leave it out")
    if budget * 255 + _SLACK < 1:
        raise OptionError(
            f"budget={budget:g} is below one level of 8 bits (1/255 = {1 / 255:.4f}), which is the least that a saved "
            "picture can change; give a larger budget"
        )


def project(
    pixels: Float[Tensor, "3 height width"],
    original: Float[Tensor, "3 height width"],
    budget: float | int | None,
    norm: str,
) -> Float[Tensor, "3 height width"]:
    """The nearest pixels within the budget and from 0 to 1.

    L∞: `clamp(x, x₀ − ε, x₀ + ε)`, with ε rounded down to whole levels, so that rounding x later cannot leave it.
    L2: `x₀ + δ·min(1, ε/‖δ‖)`; clamping to 0…1 afterwards only brings x nearer to x₀, which lies there.

    Example:
        >>> project(torch.tensor([[[0.2]], [[0.4]], [[0.9]]]), torch.full((3, 1, 1), 0.4), 0.1, "linf").flatten()
        tensor([0.3020, 0.4000, 0.4980])
    """
    change = pixels - original
    if budget is not None and norm == "linf":
        limit = int(budget * 255 + _SLACK) / 255
        change = change.clamp(-limit, limit)
    elif budget is not None:
        change = change * min(1.0, budget / max(change.norm().item(), 1e-30))
    return (original + change).clamp(0, 1)


def to_levels(
    pixels: Float[Tensor, "3 height width"],
    original: UInt8[Tensor, "3 height width"],
    budget: float | int | None = None,
    norm: str = "linf",
) -> UInt8[Tensor, "3 height width"]:
    """Round pixels from 0 to 1 to levels from 0 to 255, still within the budget.

    In L2 rounding can lengthen a change. Where that passes the budget, the roundings away from the original that were
    the narrowest are turned towards it, as many as it takes; turning all of them would leave no change longer than
    before, so it always takes no more than there are.
    """
    exact = pixels.double() * 255 - original
    levels = exact.round()
    if budget is not None and norm == "l2":
        excess = levels.square().sum() - (budget * 255) ** 2 - _SLACK
        if excess > 0:
            outward = (levels.abs() - exact.abs()).flatten()
            order = outward.argsort(descending=True, stable=True)
            order = order[outward[order] > 0]
            saved = (2 * levels.abs().flatten()[order] - 1).cumsum(0)  # n² − (n − 1)²
            back = order[: int((saved < excess).sum()) + 1]
            levels.view(-1)[back] -= levels.view(-1)[back].sign()
    return (original + levels).clamp(0, 255).to(torch.uint8)
