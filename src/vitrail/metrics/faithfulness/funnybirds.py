"""FunnyBirds' protocols (Hesse, Schaub-Meyer, Roth 2023, ICCV): part by part, what a map says and what the model does.

With a map S, dilated part masks M and a threshold t, a part p has the importance I_p = Σ S M_p, and is important where
I_p > t Σ S. Redrawn scenes tell what the model does without some parts.

single deletion           ½ + ½ Spearman(I, drop of the class's output without each part)            = correctness
preservation check        the prediction stays when only the important parts are drawn
deletion check            the prediction changes when the important parts are not drawn
synthetic data check      max over the sets of parts that suffice: the share of the set that is important
distractibility           1 − share of the irrelevant parts and things that are important; irrelevant: without it the
                          output drops by less than 5 %
target sensitivity        of two classes that share different parts with the scene, each map gives more to its own parts
                          than the other map gives to them; where the outputs do so                  = contrastivity
background independence   share of the things that are irrelevant: the model's own, whatever the map
completeness              ½ ( ⅓ (synthetic + preservation + deletion) + distractibility )

As in the released code, the threshold is the one of 80, from 0.01 to 0.5, at which a method's completeness on all
images is highest. Carried over from FunnyBirds' birds: every drawn part counts, the body too; the two classes share as
many parts as any two do, instead of two each; things of the landscape stand for the background's objects.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from ...errors import OptionError
from ..aggregation import Curves, Statistic
from ..maps import rank_correlation, spread
from ..protocol import (
    AttributionQuery,
    Case,
    Evaluation,
    LogitQuery,
    Measured,
    check_count,
    check_map,
    register_protocol,
)

__all__ = ["THRESHOLDS", "funnybirds", "important_parts", "part_importance", "rival_classes"]

THRESHOLDS = tuple(np.linspace(0.01, 0.50, num=80).tolist())
MARGIN = 0.05  # the share of the output that a relevant part or thing is worth
CURVES = ("synthetic data check", "preservation check", "deletion check", "distractibility")

Names = frozenset[str]


def part_importance(
    pixels: Float[Tensor, "height width"], masks: Mapping[str, Bool[Tensor, "height width"]], dilation: int = 5
) -> dict[str, float]:
    """Returns the sum of the map on each part, its mask dilated by a square of `dilation` pixels.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
        >>> part_importance(scores, {"crown": torch.tensor([[True, False, False, False]])}, dilation=3)
        {'crown': 3.0}
    """
    scores, found = pixels.double(), {}
    for name, mask in masks.items():
        wide = max_pool2d(mask.to(scores)[None], dilation, stride=1, padding=dilation // 2)[0]
        found[name] = float((scores * wide).sum())
    return found


def important_parts(importance: Mapping[str, float], total: float, thresholds: Sequence[float]) -> list[Names]:
    """Returns the parts above each share of the whole map's sum.

    Example:
        >>> [sorted(names) for names in important_parts({"a": 3.0, "b": 1.0}, 10.0, [0.05, 0.2])]
        [['a', 'b'], ['a']]
    """
    return [frozenset(name for name, worth in importance.items() if worth > total * share) for share in thresholds]


def rival_classes(shared: Mapping[int, Names], seen: Names) -> tuple[int, int] | None:
    """Returns two classes that share parts with the scene, as many as can be, the same number and none of them both.

    The first such pair in the order of classes; None without any. Parts that are not `seen` do not count.

    Example:
        >>> crown, tail = frozenset({"crown"}), frozenset({"tail"})
        >>> rival_classes({3: crown, 5: crown, 7: tail}, crown | tail)
        (3, 7)
    """
    parts = {known: names & seen for known, names in sorted(shared.items()) if names & seen}
    pairs = [
        (one, other)
        for one, other in combinations(parts, 2)
        if len(parts[one]) == len(parts[other]) and not parts[one] & parts[other]
    ]
    return max(pairs, key=lambda pair: len(parts[pair[0]]), default=None)


class Answers(NamedTuple):
    """What the model says to the scene with all parts, and to it without some: its own numbers, by what is missing."""

    whole: Float[Tensor, " classes"]
    without: Mapping[Names, Float[Tensor, " classes"]]

    def drop(self, missing: Names, target: int) -> float:
        """Returns how far a class's number falls when these are not drawn."""
        return float(self.whole[target] - self.without[missing][target])

    def stays(self, missing: Names) -> bool:
        """Returns whether the prediction is the same without these."""
        return int(self.whole.argmax()) == int(self.without[missing].argmax())

    def irrelevant(self, name: str, target: int) -> bool:
        """Returns whether the class loses less than 5 % of its number without this one, or gains."""
        drop, least = self.drop(frozenset({name}), target), MARGIN * abs(float(self.whole[target]))
        return abs(drop) < least or drop < 0


def single_deletion(importance: Mapping[str, float], answers: Answers, target: int) -> float:
    """Returns ½ + ½ Spearman's correlation of importance and drops, in [0, 1]; NaN where either is constant."""
    drops = [answers.drop(frozenset({name}), target) for name in importance]
    worth = torch.tensor(list(importance.values()), dtype=torch.float64)
    return 0.5 + 0.5 * rank_correlation(worth, torch.tensor(drops, dtype=torch.float64))


def target_sensitivity(
    parts: tuple[Names, Names],
    importance: tuple[Mapping[str, float], Mapping[str, float]],
    drops: tuple[tuple[float, float], tuple[float, float]],
) -> float:
    """Returns the share of two classes whose map gives their own parts more than the other's map gives them.

    `parts` are those that each class shares with the scene, `importance` the two maps' and `drops[k]` how far class k
    falls without the parts of the first and of the second. NaN unless each falls further without its own.
    """
    if not (drops[0][0] > drops[0][1] and drops[1][1] > drops[1][0]):
        return float("nan")
    own = [[sum(one[name] for name in names) for one in importance] for names in parts]
    return ((own[0][0] > own[0][1]) + (own[1][1] > own[1][0])) / 2


def summarise_funnybirds(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the means over images at the best threshold, all better high, and the model's independence."""
    steps = curves.values
    with np.errstate(invalid="ignore"):
        means = [_means(steps[name]) for name in CURVES]
    completeness = sum(means[:3]) / 3 + means[3]
    best = int(np.nanargmax(completeness)) if not np.isnan(completeness).all() else 0
    found = {name: Statistic.mean(steps[name][:, best], 1) for name in CURVES}
    weighed = [found[name] for name in (*CURVES, *CURVES[3:] * 2)]  # distractibility counts as the other three do
    things = curves.single("things")
    return {
        "single deletion (correctness)": Statistic.mean(curves.single("single deletion"), 1),
        **{name: found[name] for name in CURVES[1:3]},
        "target sensitivity (contrastivity)": Statistic.mean(curves.single("target sensitivity"), 1),
        "distractibility": found["distractibility"],
        "synthetic data check": found["synthetic data check"],
        "completeness": Statistic(
            np.hstack([one.numerator for one in weighed]), np.hstack([one.denominator for one in weighed])
        ),
        "background independence": Statistic(curves.single("independent things")[:, None], things[:, None], 0),
        "threshold": Statistic.mean(np.full(len(things), round(curves.steps[CURVES[0]][best] or 0, 3)), 0),
    }


def _means(values: Float[np.ndarray, "images steps"]) -> Float[np.ndarray, " steps"]:
    return np.nansum(values, axis=0) / (~np.isnan(values)).sum(axis=0)


@register_protocol(
    "funnybirds",
    summarise=summarise_funnybirds,
    reference="Hesse, Schaub-Meyer, Roth 2023 (ICCV)",
    needs=("parts",),
    signed=True,
)
def funnybirds(case: Case, scores: Float[Tensor, "rows cols"], *, dilation: int = 5) -> Evaluation:
    """FunnyBirds' protocols: does the map name the parts without which the model's answer changes, and no others?

    The scene is drawn again without parts, and without things around the creature; the names and formulas are those of
    FunnyBirds. `dilation`: the side in pixels of the square by which part masks grow.

    Raises:
        OptionError: for an even dilation, with which a mask would not stay in place.
    """
    check_count("dilation", dilation)
    if dilation % 2 == 0:
        raise OptionError(f"dilation={dilation} must be odd, so that masks grow to all sides alike")
    check_map(scores, case.size)
    assert case.parts is not None
    parts, target = case.parts(), case.target
    pixels, seen = spread(scores, case.size), frozenset(parts.masks)
    importance = part_importance(pixels, parts.masks, dilation)
    around = importance | part_importance(pixels, parts.things, dilation)
    total = float(pixels.double().sum())
    important = important_parts(importance, total, THRESHOLDS)
    rivals = rival_classes(parts.shared, seen)
    shared = tuple(parts.shared[one] & seen for one in rivals or ())

    wanted = {frozenset({name}) for name in around} | {seen - some for some in important} | {*important, *shared}
    missing = sorted(wanted - {frozenset()}, key=sorted)

    def make(rows: range) -> Float[Tensor, "rows channels height width"]:
        return torch.stack([parts.draw(missing[row]) for row in rows]).to(case.image)

    logits = yield LogitQuery(len(missing), make)
    numbers = case.output.numbers(torch.cat([case.logits[None], logits.to(case.logits)]).double())
    answers = Answers(numbers[0], dict(zip([frozenset[str](), *missing], numbers, strict=True)))

    sensitivity = float("nan")
    if rivals is not None:
        (one, other), (first, second) = rivals, shared
        drops = tuple((answers.drop(first, rival), answers.drop(second, rival)) for rival in rivals)
        maps = yield AttributionQuery(case.image.expand(2, -1, -1, -1), [one, other])
        worth = tuple(part_importance(spread(found.to(pixels), case.size), parts.masks, dilation) for found in maps)
        sensitivity = target_sensitivity((first, second), (worth[0], worth[1]), (drops[0], drops[1]))
    independent = [answers.irrelevant(name, target) for name in parts.things]
    return [
        Measured("single deletion", None, single_deletion(importance, answers, target)),
        Measured("target sensitivity", None, sensitivity),
        Measured("things", None, float(len(independent))),
        Measured("independent things", None, float(sum(independent))),
        *_checks(case, answers, important, important_parts(around, total, THRESHOLDS), seen),
    ]


def _checks(
    case: Case, answers: Answers, important: Sequence[Names], with_things: Sequence[Names], seen: Names
) -> Iterator[Measured]:
    """Yields what is measured at each threshold."""
    assert case.parts is not None
    parts, target = case.parts(), case.target
    right = case.predicted == case.label == target  # the sets that suffice are those of the label
    irrelevant = {name for name in (*parts.masks, *parts.things) if answers.irrelevant(name, target)}
    for share, some, around in zip(THRESHOLDS, important, with_things, strict=True):
        sets = [len(told & some) / len(told) for told in parts.sufficient] if right else []
        values = (
            max(sets, default=float("nan")),
            float(answers.stays(seen - some)),
            float(not answers.stays(some)),
            1 - len(around & irrelevant) / len(irrelevant) if irrelevant else float("nan"),
        )
        yield from (Measured(name, share, value) for name, value in zip(CURVES, values, strict=True))
