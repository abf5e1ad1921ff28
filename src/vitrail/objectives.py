"""Which scalar is differentiated: small registered functions of the logits, and what rival classes add to them.

**Class competition** is the target's map less what argues for other classes that are present elsewhere in the image.
With the target's map S, and for its rivals k, the best classes unlike it, the most present first, the weights

    p_k = clamp(1 − (max_j l_j − l_k) / τ, 0, 1),    w_k = p_1 · (p_k / p_1)⁵    (rounded to 1/1024)

one more backward pass gives the map J of Σ_k w_k l_k / max(1, Σ_k w_k). The power lets the most present rival stand
out: one map of several rivals is faint on each. A rival counts only as far as its evidence lies elsewhere, so that the
competing map is

    C = S − (1 − overlap(S⁺, J⁺)) · J,    overlap(a, b) = Σ_p min(a_p / Σa, b_p / Σb)    (p: the patches)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from .errors import ObjectiveError, UnknownObjectiveError
from .models.vision_model import VisionModel
from .outputs import LOGITS, Output

__all__ = [
    "MOST_RIVALS",
    "OBJECTIVES",
    "REACH",
    "UNLIKE",
    "Objective",
    "ObjectiveInfo",
    "Rivals",
    "check_objective",
    "class_rows",
    "classifier",
    "default_objective",
    "evaluate_objective",
    "find_rivals",
    "joined",
    "list_objectives",
    "objective_name",
    "register_objective",
    "rival_logit",
    "subtract",
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
    """Registers a function of the logits under its own name.

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
    """Returns the names that `objective=` takes.

    Example:
        >>> "normalized_difference" in list_objectives()
        True
    """
    return list(OBJECTIVES)


def objective_name(objective: Objective | None, against: object) -> str:
    """Returns the name of an objective as a result records it; None is `logit`, or `difference` of two classes.

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
    """Returns the objective where none is named: a method's `own`, else the logit, or the difference of two that are
    compared.

    Scores and embeddings have neither probabilities nor quotients: for them no method's own is taken.

    Example:
        >>> default_objective(False, LOGITS, "probability"), default_objective(True, Output("scores", link=None))
        ('probability', 'difference')
    """
    common = "difference" if compares else "logit"
    return common if output.link is None else own or common


def check_objective(info: ObjectiveInfo, output: Output) -> None:
    """Refuses an objective that means nothing to the kind of output. Raises `OutputKindError`."""
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
    """Returns the scalar of every image, and for which images the plain difference stood in.

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


UNLIKE = 0.5  # two classes whose classifier rows have a cosine of this or more are no rivals
MOST_RIVALS = 4
REACH = 8.0  # τ: a class whose logit lies this far below the largest is absent
SHARPNESS = 5  # the power to which a rival's presence is taken, as a part of that of the most present
STEPS = 1024  # to which presence is rounded: a batch of another size moves the last digits of the logits, and no map


@dataclass(frozen=True, eq=False)
class Rivals:
    """Holds what competed with each target: classes, how much each counts, and the map that was subtracted.

    `classes` are indices, the most present first; a `weights` of 0 marks one that took no part. `scores`
    is the map (1 − overlap) · J, so that the target's own map is the explanation's scores plus these.
    """

    classes: Int[Tensor, "*questions rivals"]
    weights: Float[Tensor, "*questions rivals"]
    scores: Float[Tensor, "*questions rows cols"]

    def __getitem__(self, images: slice) -> "Rivals":
        """Returns the rivals of some of the images."""
        return Rivals(self.classes[images], self.weights[images], self.scores[images])

    def of_target(self, number: int) -> "Rivals":
        """Returns the rivals of one of several targets, without the axis of targets."""
        return Rivals(self.classes[:, number], self.weights[:, number], self.scores[:, number])


def joined(parts: Sequence[Rivals], *, nested: bool) -> Rivals | None:
    """Returns the rivals of several passes as those of all images, on the CPU; None where there are no parts.

    Each part has an axis of targets, which stays where `nested`.
    """
    if not parts:
        return None
    found = (torch.cat([getattr(one, name) for one in parts]).cpu() for name in ("classes", "weights", "scores"))
    return Rivals(*(tensor if nested else tensor[:, 0] for tensor in found))


def classifier(model: VisionModel, classes: int) -> nn.Linear | None:
    """Returns the model's linear classifier, the last linear layer with that many outputs; None where there is none."""
    heads = [part for part in model.module.modules() if isinstance(part, nn.Linear) and part.out_features == classes]
    return heads[-1] if heads else None


def class_rows(model: VisionModel, classes: int) -> Float[Tensor, "classes width"] | None:
    """Returns the classifier's rows without what all share, each of length 1; None where no linear classifier can be
    read.

    They stay on a GPU where the model does: on the CPU, a thousand classes take as long as a GPU takes for ten images.
    """
    head = classifier(model, classes)
    if head is None:
        return None
    weight = head.weight.detach()
    try:
        rows = torch.as_tensor(weight if weight.is_cuda else weight.cpu())
        return directions(rows if rows.dtype == torch.float64 else rows.float())
    except (NotImplementedError, RuntimeError, TypeError):  # quantized by a library whose tensors know few operations
        return None


def directions(rows: Float[Tensor, "classes width"]) -> Float[Tensor, "classes width"]:
    """Returns the rows less what all share, each of length 1."""
    rows = rows - rows.mean(dim=0)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def find_rivals(
    logits: Float[Tensor, "images classes"],
    target: Int[Tensor, "images targets"],
    rows: Float[Tensor, "classes width"] | None = None,
) -> tuple[Int[Tensor, "images targets rivals"], Float[Tensor, "images targets rivals"]]:
    """Returns the best `MOST_RIVALS` classes unlike each target, and the weight w_k of each, from 0 to 1.

    `rows` are the classifier's directions (`class_rows`); without them all classes are unlike.
    Where fewer classes are unlike the target, the rest have weight 0.

    Example:
        >>> logits = torch.tensor([[7.0, 5.0, 6.0]])
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # the first and the last class are alike
        >>> classes, weights = find_rivals(logits, torch.tensor([[0]]), rows)
        >>> classes[0, 0, 0].item(), weights[0, 0].tolist()
        (1, [0.75, 0.0, 0.0])
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    target = target.to(logits.device)
    if rows is None:
        alike = one_hot(target, logits.shape[1]).bool()
    else:
        alike = (rows[target.to(rows.device)] @ rows.T >= UNLIKE).to(logits.device)
        alike |= one_hot(target, logits.shape[1]).bool()  # a row of zeros is unlike even itself
    others = wide[:, None].expand_as(alike).masked_fill(alike, -torch.inf)
    best, classes = others.topk(min(MOST_RIVALS, logits.shape[1]), dim=2)
    presence = (1 - (wide.amax(dim=1)[:, None, None] - best) / REACH).clamp(0, 1)
    first = presence[..., :1]
    weights = torch.where(first > 0, first * (presence / first) ** SHARPNESS, 0)
    return classes, (weights * STEPS).round() / STEPS


def rival_logit(
    logits: Float[Tensor, "images classes"],
    classes: Int[Tensor, "images rivals"],
    weights: Float[Tensor, "images rivals"],
) -> Float[Tensor, " images"]:
    """Returns Σ_k w_k l_k / max(1, Σ_k w_k), the scalar whose map is that of all rivals together.

    Example:
        >>> rival_logit(torch.tensor([[7.0, 5.0, 6.0]]), torch.tensor([[1, 2]]), torch.tensor([[0.5, 1.5]]))
        tensor([5.7500])
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    weights = weights.to(wide)
    return (weights * wide.gather(1, classes.to(wide.device))).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def overlap(
    one: Float[Tensor, "*questions rows cols"], other: Float[Tensor, "*questions rows cols"]
) -> Float[Tensor, "*questions"]:
    """Returns the share of positive relevance that two maps put on the same patches, from 0 to 1.

    Example:
        >>> overlap(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, -1.0]])).item()
        0.25
    """
    first, second = (maps.clamp(min=0).flatten(-2) for maps in (one, other))
    smallest = torch.finfo(one.dtype).tiny
    first, second = (maps / maps.sum(dim=-1, keepdim=True).clamp(min=smallest) for maps in (first, second))
    return torch.minimum(first, second).sum(dim=-1)


def subtract(
    own: Float[Tensor, "*questions rows cols"], rivals: Float[Tensor, "*questions rows cols"]
) -> tuple[Float[Tensor, "*questions rows cols"], Float[Tensor, "*questions rows cols"]]:
    """Returns C = S − (1 − overlap(S⁺, J⁺)) · J, and what was subtracted.

    Example:
        >>> subtract(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 2.0]]))[0]
        tensor([[1., 0.]])
    """
    taken = (1 - overlap(own, rivals))[..., None, None] * rivals
    return own - taken, taken
