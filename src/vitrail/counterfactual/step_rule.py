"""How a rewriting steps: which slope it follows, in which direction, how far, and what stays within a budget.

Budgets count in whole levels of 8 bits, since only those reach the saved file.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import OptionError

__all__ = ["NORMS", "SLOPES", "VARIANTS", "StepRule", "check_budget", "project", "step_rule", "to_levels"]

VARIANTS = ("gradient", "sign", "adam")
SLOPES = ("difference", "log_probability")

_LARGEST = {"gradient": 0.01, "sign": 0.5 / 255, "adam": 0.5 / 255}  # change of a pixel in a step, without a budget
_PART = 0.25  # of the budget, in a step within one

NORMS = ("linf", "l2")
_SLACK = 1e-6  # so that a budget written as 8/255 allows eight levels


@dataclass(frozen=True)
class StepRule:
    """One way to step, all choices made.

    `objective` goes down: "difference" is l_source − l_target, as published; "log_probability" is −log p_target, which
    also pushes down whichever third class leads. `variant` is what a step follows: the raw "gradient", its "sign", or
    "adam". `step` is the largest change of a pixel in one step, or, where `euclidean`, the step's L2 length; pixels
    count from 0 to 1.
    """

    objective: str
    variant: str
    step: float
    euclidean: bool = False


def step_rule(
    objective: str | None, variant: str | None, step: float | int | None, budget: float | int | None, norm: str
) -> StepRule:
    """Returns the step rule as given, with the default for each None.

    Without a budget the published form: the raw gradient of the difference, scaled to a largest change of 0.01. Within
    one the question is whether the class can be reached at all, and the defaults are those that reached it most often:
    the log-probability, along the gradient's sign within L∞ and along the gradient within L2, a quarter of the budget
    a step, which are the steepest ways in the two norms (`benchmarks/equal_budget.py` measures it).

    Raises:
        OptionError: for words and numbers out of range.

    Example:
        >>> step_rule(None, None, None, None, "linf")
        StepRule(objective='difference', variant='gradient', step=0.01, euclidean=False)
        >>> step_rule(None, None, None, 1.0, "l2")
        StepRule(objective='log_probability', variant='gradient', step=0.25, euclidean=True)
    """
    check_budget(budget, norm)
    if objective is None:
        objective = SLOPES[0] if budget is None else SLOPES[1]
    if objective not in SLOPES:
        raise OptionError(f"objective={objective!r} is not one of {', '.join(SLOPES)}")
    if variant is None:
        variant = "sign" if budget is not None and norm == "linf" else "gradient"
    if variant not in VARIANTS:
        raise OptionError(f"variant={variant!r} is not one of {', '.join(VARIANTS)}")
    if step is not None:
        if not 0 < step <= 1:
            raise OptionError(f"step={step:g} must lie above 0 and be at most 1, the range of a pixel")
        return StepRule(objective, variant, float(step))
    if budget is not None and variant == "gradient" and norm == "l2":
        return StepRule(objective, variant, _PART * budget, euclidean=True)
    if budget is not None and variant != "gradient" and norm == "linf":
        return StepRule(objective, variant, _PART * budget)
    return StepRule(objective, variant, _LARGEST[variant])


def check_budget(budget: float | int | None, norm: str) -> None:
    """Refuses a budget that no 8-bit file can keep, or a norm other than "linf" and "l2".

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
    """Returns the nearest pixels within the budget and from 0 to 1.

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
    """Rounds pixels from 0 to 1 to levels from 0 to 255, still within the budget.

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
