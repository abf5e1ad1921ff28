"""Every method against the known answers of the bestiary.

Three kinds of scene are asked about: singles (why this class, and why not its sibling), pairs (either class in the
presence of the other, and one against the other) and chimeras (one sibling against the other in a creature that is
half each). What is true is what the model itself does when a part is not drawn.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitrail.attention.gradient_modes import check_gradient_mode
from vitrail.bestiary.causal import CausalTruth, causal_truth
from vitrail.bestiary.dataset import Bestiary
from vitrail.bestiary.model import normalised
from vitrail.bestiary.species import CLASS_NAMES, siblings, species
from vitrail.errors import OptionError
from vitrail.explain import explain
from vitrail.methods import METHODS, MethodInfo
from vitrail.methods.registry import choose_methods
from vitrail.metrics.aggregation import Interval, bootstrap
from vitrail.metrics.localisation.energy import energy_share
from vitrail.metrics.localisation.pointing import highest_inside
from vitrail.metrics.maps import correlation, rank_correlation, spread
from vitrail.metrics.signs import positive_share, sign_accuracy
from vitrail.models import VisionModel

__all__ = ["MEASURES", "Measure", "Score", "draw_truths", "measured", "part_scores", "part_sign", "score"]

SEED = 2**21  # far from the seeds of training pools and of the held-out scenes that accuracy is measured on
BATCH = 50
DRAWN = "a part not drawn"
CHANCE = "random"
COMPETE = "compete"
COMPARED = ("raw", "rollout", "gae", "complete", "absolute", "gmar_l1", "gmar_l2")

Progress = Callable[[str, int, int], None]
Maps = Float[Tensor, "scenes targets rows cols"]


class Measure(NamedTuple):
    """What a column of the table says: the scenes it is of, a sentence, and which way is better (0: neither)."""

    scenes: str
    meaning: str
    better: int = 1


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "pair sign": Measure(
            "pair", "right sign on target (+) and other (−) creature, mean share of absolute relevance"
        ),
        "pair rank": Measure("pair", "rank correlation of part scores with the change of the target's logit"),
        "pair energy": Measure("pair", "share of positive relevance on the target's creature"),
        "pair likeness": Measure("pair", "correlation between the maps of the two classes", -1),
        "rival sign": Measure("pair", "the same as pair sign when one class is asked against the other"),
        "rival rank": Measure("pair", "rank correlation with the change of the target's logit less the other's"),
        "single sign": Measure("single", "positive share of the absolute relevance on the creature"),
        "single rank": Measure("single", "rank correlation of part scores with the change of the class's logit"),
        "single energy": Measure("single", "share of positive relevance on the creature"),
        "single pointing": Measure("single", "whether the highest patch lies on the creature"),
        "sibling rank": Measure("single", "rank correlation with the change of the class's logit less its sibling's"),
        "chimera sign": Measure("chimera", "A's part positive and B's part negative when A is asked against B"),
    }
)


@dataclass(frozen=True)
class Score:
    """One line of the table: a method in one gradient mode (None: it uses no gradient), and its measures by name."""

    method: str
    gradient: str | None
    signed: bool
    measures: Mapping[str, Interval]

    @property
    def label(self) -> str:
        """Returns the method with its gradient mode, as in "complete, libra"."""
        return self.method if self.gradient is None else f"{self.method}, {self.gradient}"


def score(
    model: VisionModel,
    methods: Sequence[str] = COMPARED,
    *,
    gradients: Sequence[str] = ("full", "libra", "compete"),
    count: int = 200,
    seed: int = SEED,
    progress: Progress | None = None,
) -> list[Score]:
    """Measures methods on `count` scenes of each kind, with 95 % bootstrap intervals.

    `methods` are names, or groups as `vitrail.compare` knows them; default: those that the paper is about. Maps of
    pixels are averaged over the patches.

    `model` is a bestiary model, as `vitrail.load("bestiary")` gives it. Two lines of comparison come first: "a part not
    drawn", the truth itself where a measure is about parts, and "random", normal noise. Methods that use gradients get
    a line for each of `gradients`; "compete" is a line of `complete` alone: libra with class competition. Raises
    `UnknownMethodError`, and `OptionError` for a model of other classes, an unknown gradient mode or a count below 2.

    >>> import vitrail
    >>> table = score(vitrail.load("bestiary"), ["complete"], gradients=["libra"], count=2)
    >>> [line.label for line in table]
    ['a part not drawn', 'random', 'complete, libra']
    """
    if model.class_names != CLASS_NAMES:
        raise OptionError(f"{model.name} does not answer with the {len(CLASS_NAMES)} classes of the bestiary")
    if count < 2:
        raise OptionError(f"count={count} scenes of a kind are too few for an interval; 2 is the least")
    for mode in set(gradients) - {COMPETE}:
        check_gradient_mode(mode)  # before all that drawing
    infos = list(dict.fromkeys(one.info.name for one in choose_methods(methods)))
    report = progress if progress is not None else lambda *_: None
    worlds = {kind: list(draw_truths(model, kind, count, seed, report)) for kind in ("pair", "single", "chimera")}
    lines = [
        Score(DRAWN, None, True, _of_truth(worlds)),
        Score(CHANCE, None, True, _intervals(measured(worlds, _noise(seed)))),
    ]
    modes = [
        (info, mode)
        for info in map(METHODS.__getitem__, infos)
        for mode in (gradients if info.uses_gradient else (None,))
        if mode != COMPETE or info.name == "complete"
    ]
    for done, (info, mode) in enumerate(modes):
        report("explain", done, len(modes))
        lines.append(Score(info.name, mode, info.signed, _intervals(measured(worlds, _asking(model, info, mode)))))
    report("explain", len(modes), len(modes))
    return lines


# -- the questions ---------------------------------------------------------------------------------------------------

Worlds = Mapping[str, Sequence[CausalTruth]]
# From scenes and the (target, against) pairs asked of each to one map per question.
Ask = Callable[[Sequence[CausalTruth], Sequence[Sequence[tuple[str, str | None]]]], Maps]


def draw_truths(model: VisionModel, kind: str, count: int, seed: int, report: Progress) -> Iterator[CausalTruth]:
    """Draws scenes, and finds what each part of them is worth to the model."""
    data = Bestiary(kind, count=count, seed=seed)
    for done, truth in enumerate(causal_truth(model.module, [data.scene(i) for i in range(count)])):
        report(f"draw {kind}s", done + 1, count)
        yield truth


def _asking(model: VisionModel, info: MethodInfo, gradient: str | None) -> Ask:
    """Asks the method; one that is the same for every class gives the same map to every question."""
    options: dict[str, Any] = {"method": info.name}
    if gradient is not None:
        options["gradient"] = "libra" if gradient == COMPETE else gradient

    def ask(truths: Sequence[CausalTruth], questions: Sequence[Sequence[tuple[str, str | None]]]) -> Maps:
        images = normalised(torch.stack([truth.image for truth in truths]))
        if not info.class_specific:
            return _patches(explain(model, images, **options).scores[:, None]).expand(-1, len(questions[0]), -1, -1)
        against = None
        if questions[0][0][1] is not None:
            against = [[other for _, other in row] for row in questions]
        asked = [[target for target, _ in row] for row in questions]
        if against is None:
            return _patches(explain(model, images, asked, compete=gradient == COMPETE, **options).scores)
        return _patches(explain(model, images, asked, against=against, objective="difference", **options).scores)

    return ask


def _patches(scores: Float[Tensor, "images questions rows cols"]) -> Float[Tensor, "images questions 12 12"]:
    """Maps of pixels averaged over the patches; maps of patches as they are."""
    return torch.nn.functional.adaptive_avg_pool2d(scores, (12, 12))


def _noise(seed: int) -> Ask:
    generator = torch.Generator().manual_seed(seed)

    def ask(truths: Sequence[CausalTruth], questions: Sequence[Sequence[tuple[str, str | None]]]) -> Maps:
        return torch.randn(len(truths), len(questions[0]), 12, 12, generator=generator)

    return ask


# -- the measures ----------------------------------------------------------------------------------------------------


def part_scores(
    pixels: Float[Tensor, "height width"], masks: Bool[Tensor, "parts height width"]
) -> Float[Tensor, " parts"]:
    """Returns the relevance that lies on each part."""
    return (pixels * masks).sum((1, 2))


def part_sign(scores: Float[Tensor, " parts"], says: Float[Tensor, " parts"]) -> float:
    """Returns the share of parts whose score has the sign of `says` (+1 for, -1 against, 0: not asked), in [0, 1].

    A score of exactly zero counts half.
    """
    asked = says != 0
    right = (scores[asked].sign() == says[asked].sign()).double() + 0.5 * (scores[asked] == 0).double()
    return float(right.mean()) if bool(asked.any()) else torch.nan


def measured(worlds: Worlds, ask: Ask) -> dict[str, list[float]]:
    """Asks for the maps of all scenes, and measures each: the values by measure, in the order of the scenes."""
    found: dict[str, list[float]] = defaultdict(list)
    for kind, truths in worlds.items():
        for start in range(0, len(truths), BATCH):
            some = truths[start : start + BATCH]
            if kind in _PLAIN:
                plain = ask(some, [[(name, None) for name in truth.scene.labels] for truth in some])
                for truth, maps in zip(some, plain, strict=True):
                    _PLAIN[kind](truth, [spread(each, truth.size) for each in maps], found)
            for truth, maps in zip(some, ask(some, [[_duel(truth)] for truth in some]), strict=True):
                _of_duel(truth, spread(maps[0], truth.size), found)
    return dict(found)


def _intervals(found: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    return {name: bootstrap(found.get(name, ())) for name in MEASURES}


def _of_truth(worlds: Worlds) -> dict[str, Interval]:
    """Returns the truth held against itself, where a measure is about parts: what the best method could get."""
    found: dict[str, list[float]] = defaultdict(list)
    for kind, truths in worlds.items():
        for truth in truths:
            if kind in _PLAIN:
                worth = truth.importance(truth.scene.labels[0])
                found[f"{kind} rank"].append(rank_correlation(worth, worth))
            _of_parts(truth, truth.importance(*_duel(truth)), found)
    return _intervals(found)


def _duel(truth: CausalTruth) -> tuple[str, str]:
    """Returns the class of a single against its nearest sibling; the first of a pair or chimera against the second."""
    labels = truth.scene.labels
    return (labels[0], siblings(labels[0])[0]) if len(labels) == 1 else (labels[0], labels[1])


def _of_single(truth: CausalTruth, maps: Sequence[Tensor], found: dict[str, list[float]]) -> None:
    (pixels,), (creature,), (name,) = maps, truth.creatures, truth.scene.labels
    found["single sign"].append(positive_share(pixels, creature))
    found["single rank"].append(rank_correlation(part_scores(pixels, truth.masks), truth.importance(name)))
    found["single energy"].append(energy_share(pixels, creature, "positive"))
    found["single pointing"].append(highest_inside(pixels, creature))


def _of_pair(truth: CausalTruth, maps: Sequence[Tensor], found: dict[str, list[float]]) -> None:
    sign, rank, share = [], [], []
    for number, (pixels, name) in enumerate(zip(maps, truth.scene.labels, strict=True)):
        target, other = truth.creatures[number], truth.creatures[1 - number]
        sign.append(sign_accuracy(pixels, target, other))
        rank.append(rank_correlation(part_scores(pixels, truth.masks), truth.importance(name)))
        share.append(energy_share(pixels, target, "positive"))
    # The two classes of one picture are no independent observations: their mean is one.
    for measure, values in (("sign", sign), ("rank", rank), ("energy", share)):
        found[f"pair {measure}"].append(float(torch.tensor(values, dtype=torch.float64).nanmean()))
    found["pair likeness"].append(correlation(maps[0], maps[1]))


_PLAIN = {"single": _of_single, "pair": _of_pair}  # asked: why this class?


def _of_duel(truth: CausalTruth, pixels: Float[Tensor, "height width"], found: dict[str, list[float]]) -> None:
    if truth.scene.kind == "pair":
        found["rival sign"].append(sign_accuracy(pixels, truth.creatures[0], truth.creatures[1]))
    _of_parts(truth, part_scores(pixels, truth.masks), found)


def _of_parts(truth: CausalTruth, scores: Float[Tensor, " parts"], found: dict[str, list[float]]) -> None:
    """Scores one class against the other, part by part."""
    target, against = _duel(truth)
    if truth.scene.kind == "chimera":
        first, second = species(target).family.diagnostic
        says = torch.tensor([(slot == first) - float(slot == second) for _, slot in truth.parts])
        found["chimera sign"].append(part_sign(scores, says))
    else:
        name = "rival rank" if truth.scene.kind == "pair" else "sibling rank"
        found[name].append(rank_correlation(scores, truth.importance(target, against)))
