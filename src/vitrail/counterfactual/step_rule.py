"""How a rewriting steps: which slope it follows, in which direction, how far; and what is best within a budget."""

from dataclasses import dataclass

from ..errors import OptionError
from .budget import check_budget

__all__ = ["SLOPES", "VARIANTS", "StepRule", "step_rule"]

VARIANTS = ("gradient", "sign", "adam")
SLOPES = ("difference", "log_probability")

_LARGEST = {"gradient": 0.01, "sign": 0.5 / 255, "adam": 0.5 / 255}  # change of a pixel in a step, without a budget
_PART = 0.25  # of the budget, in a step within one


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
    """What was asked for, and for each None the default.

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
