"""The options that several protocols share, and what they mean."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...errors import OptionError
from ...targets import refuse_unpredicted
from ..case import Case
from ..perturbation import enlarged

__all__ = [
    "ORDERS",
    "SCORES",
    "TARGETS",
    "answers",
    "check_count",
    "check_one_of",
    "check_shares",
    "class_asked",
    "places_of",
]

TARGETS = ("explained", "predicted", "label")
SCORES = ("probability", "hit", "output")
ORDERS = ("morf", "lerf")  # the most relevant first, or the least


def check_one_of(option: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is not among those known. Raises `OptionError`."""
    if value not in known:
        raise OptionError(f"{option}={value!r} is unknown; choose one of {', '.join(known)}")


def check_count(option: str, value: int, least: int = 1) -> None:
    """Refuse a whole number below the least that makes sense. Raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{option}={value!r} must be a whole number, {least} or more")


def check_shares(shares: Sequence[float]) -> None:
    """Refuse shares of an image that are not ascending, each above 0 and below 1. Raises `OptionError`."""
    told = f"shares={tuple(shares)}"
    if not shares:
        raise OptionError(f"{told} takes nothing out; give at least one share of the image")
    if not all(0 < share < 1 for share in shares):
        raise OptionError(f"{told} must each lie above 0 and below 1")
    if any(one >= two for one, two in pairwise(shares)):
        raise OptionError(f"{told} must ascend, each but once")


def class_asked(case: Case, target: str) -> int:
    """The class whose answer is watched: the one explained, the predicted or the true one.

    Raises:
        OptionError: for another word, or the label of an image that has none.
        TargetError: for the predicted one of several free numbers.
    """
    check_one_of("target", target, TARGETS)
    if target == "label":
        if case.label is None:
            raise OptionError(f"target='label' needs the true class of {case.source}, which is not known")
        return case.label
    if target == "predicted":
        refuse_unpredicted(case.output, len(case.logits))
    return case.target if target == "explained" else case.predicted


def answers(case: Case, logits: Float[Tensor, "rows classes"], asked: int, score: str) -> Float[Tensor, " rows"]:
    """What is watched of a class, in float64: its probability, 1 where it wins, or the model's own number ("output").

    Raises:
        OptionError: for another word.
        OutputKindError: for a probability or a winner of what has none.
    """
    check_one_of("score", score, SCORES)
    if score == "output":
        return case.output.numbers(logits.double())[:, asked]
    if score == "hit":
        return case.output.wins(logits, asked).double()
    return case.output.probabilities(logits.double())[:, asked]


def places_of(case: Case, scores: Float[Tensor, "rows cols"], unit: str) -> Float[Tensor, "high wide"]:
    """The map on what is taken out: on "pixel", bilinearly enlarged and from 0 to 1; else on the model's patches."""
    if unit == "pixel":
        return enlarged(scores, case.size)
    if tuple(scores.shape) == case.grid:
        return scores
    return adaptive_avg_pool2d(scores[None], case.grid)[0]
