"""Which scalar is differentiated: small registered functions of the logits."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import ObjectiveError, UnknownObjectiveError
from .outputs import LOGITS, Output

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveInfo",
    "check_objective",
    "default_objective",
    "evaluate_objective",
    "list_objectives",
    "objective_name",
    "register_objective",
]

Pair: TypeAlias = tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]
Objective: TypeAlias = str | Callable[[Tensor], Tensor]


class ObjectiveInfo(NamedTuple):
    """A registered objective: its function, and whether it compares two classes.

    `positive_only` and `probabilistic` are as `register_objective` has them.
    """

    name: str
    function: Callable[..., Float[Tensor, " batch"]]
    compares: bool
    positive_only: bool
    summary: str
    probabilistic: bool = False


OBJECTIVES: dict[str, ObjectiveInfo] = {}

# Eq. 8 and the ratio divide by a logit. Below this part of the largest |logit| a divisor counts as zero.
SMALLEST_DIVISOR = 1e-3


def register_objective(
    *, compares: bool, positive_only: bool = False, probabilistic: bool = False
) -> Callable[[Callable], Callable]:
    """Register a function of the logits under its own name.

    Functions that compare take (logits, target's logit, other's logit), others (logits, target's logit); all return one
    number per image. `positive_only` marks those that mean what they say only while both logits are positive, and
    nothing to free scores, whose zero is anybody's; `probabilistic` those that read the target's probability off the
    softmax of all logits. For labels that do not exclude each other, "all" are the label's own logit and 0.
    """

    def register(function: Callable) -> Callable:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        OBJECTIVES[function.__name__] = ObjectiveInfo(
            function.__name__, function, compares, positive_only, summary, probabilistic
        )
        return function

    return register


@register_objective(compares=False)
def logit(logits: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
    """l_t, the target's logit (Cui, Fan, Chen, Eq. 7)."""
    return target


@register_objective(compares=True, positive_only=True)
def normalized_difference(logits: Tensor, target: Tensor, other: Tensor) -> Float[Tensor, " batch"]:
    """(l_1 − l_2) / l_1, differentiated through the denominator too (Eq. 8)."""
    return (target - other) / target


@register_objective(compares=True)
def difference(logits: Tensor, target: Tensor, other: Tensor) -> Float[Tensor, " batch"]:
    """l_1 − l_2: both classes weigh alike."""
    return target - other


@register_objective(compares=True, positive_only=True)
def ratio(logits: Tensor, target: Tensor, other: Tensor) -> Float[Tensor, " batch"]:
    """l_1 / l_2."""
    return target / other


@register_objective(compares=False, probabilistic=True)
def probability(logits: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
    """The target's probability."""
    return (target - logits.logsumexp(dim=-1)).exp()


@register_objective(compares=False, probabilistic=True)
def log_probability(logits: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
    """The logarithm of the target's probability."""
    return target - logits.logsumexp(dim=-1)


def list_objectives() -> list[str]:
    """The names that `objective=` takes.

    Example:
        >>> "normalized_difference" in list_objectives()
        True
    """
    return list(OBJECTIVES)


def objective_name(objective: Objective | None, against: object) -> str:
    """The name of an objective as a result records it; None is `logit`, or `difference` of two classes.

    Raises:
        UnknownObjectiveError: for a name that is not registered.
        ObjectiveError: for a comparison without `against`, or `against` without a comparison.
    """
    if objective is None:
        return "logit" if against is None else "difference"
    if callable(objective):
        if against is not None:
            raise ObjectiveError("against= means nothing to an objective that is a function: compare the classes in it")
        return getattr(objective, "__name__", type(objective).__name__)
    if objective not in OBJECTIVES:
        raise UnknownObjectiveError(f"no objective is called {objective!r}; there are {', '.join(OBJECTIVES)}")
    if OBJECTIVES[objective].compares and against is None:
        raise ObjectiveError(f"objective={objective!r} compares two classes: say against= which class")
    if not OBJECTIVES[objective].compares and against is not None:
        comparing = ", ".join(name for name, info in OBJECTIVES.items() if info.compares)
        raise ObjectiveError(
            f"objective={objective!r} takes one class, but against= is given; these compare: {comparing}"
        )
    return objective


def default_objective(compares: bool, output: Output, own: str | None = None) -> str:
    """The objective where none is named: a method's `own`, else the logit, or the difference of two that are compared.

    Scores and embeddings have neither probabilities nor quotients: for them no method's own is taken.

    Example:
        >>> default_objective(False, LOGITS, "probability"), default_objective(True, Output("scores", link=None))
        ('probability', 'difference')
    """
    common = "difference" if compares else "logit"
    return common if output.link is None else own or common


def check_objective(info: ObjectiveInfo, output: Output) -> None:
    """Refuse an objective that means nothing to the kind of output. Raises `OutputKindError`."""
    if output.link is None and info.probabilistic:
        raise output.refusal("a probability")
    if output.link is None and info.positive_only:
        raise output.refusal(f"{info.name}, a quotient that hangs on where the numbers have their zero,")


def evaluate_objective(
    objective: Objective,
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    against: Int[Tensor, " batch"] | None,
    by_difference: Bool[Tensor, " batch"] | None = None,
    output: Output = LOGITS,
) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """The scalar of every image, and for which images the plain difference stood in.

    Eq. 8 and the ratio turn their sign where a logit is negative and blow up near zero. Where one of the two logits is
    not above `SMALLEST_DIVISOR` times the image's largest |logit|, the `difference` l_1 − l_2 is taken instead, which
    asks the same question; the second result says where. `by_difference` names images for which the difference is
    taken in any case: those that belong to one integral with an image that needs it. `output` is the model's kind of
    output: it says what a probability is, and a callable is given the model's own numbers.

    Raises:
        ObjectiveError: when a callable returns anything but one number per image.
        OutputKindError: for a probability or a quotient of what has none.
    """
    nowhere = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if callable(objective):
        return _of_callable(objective, output.numbers(logits)), nowhere
    info = OBJECTIVES[objective]
    check_objective(info, output)
    # Logits of half-precision models are compared in float32: their differences are what is explained.
    wide = logits if logits.dtype == torch.float64 else logits.float()
    own = wide.gather(1, target[:, None])[:, 0]
    if info.probabilistic and output.link == "sigmoid":
        wide = torch.stack([own, torch.zeros_like(own)], dim=1)  # the softmax of (l, 0) is the sigmoid of l
    if not info.compares:
        return info.function(wide, own), nowhere
    if against is None:
        raise ObjectiveError(f"objective={objective!r} compares two classes: say against= which class")
    other = wide.gather(1, against[:, None])[:, 0]
    if not info.positive_only:
        return info.function(wide, own, other), nowhere
    smallest = SMALLEST_DIVISOR * wide.detach().abs().amax(dim=1)
    replaced = ((own <= smallest) | (other <= smallest)).detach()
    if by_difference is not None:
        replaced = replaced | by_difference
    # The divisors of replaced images are set to one, so that no infinity enters the sum that is differentiated.
    one = torch.ones_like(own)
    value = info.function(wide, torch.where(replaced, one, own), torch.where(replaced, one, other))
    return torch.where(replaced, own - other, value), replaced


def _of_callable(objective: Callable[[Tensor], Tensor], logits: Tensor) -> Float[Tensor, " batch"]:
    value = objective(logits)
    if not isinstance(value, Tensor) or value.numel() != len(logits):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ObjectiveError(f"the objective returned {shape} for {len(logits)} image(s): return one number per image")
    return value.reshape(-1)
