"""What an audit makes of the model's answers: suspects in order, near duplicates, pairs of classes, what is shown."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from ..errors import DataError, OptionError
from .class_pairs import confusable_pairs
from .duplicates import duplicate_groups
from .label_scores import LabelScores, out_of_sample, score_label_sets, score_labels

__all__ = ["Answers", "Contrast", "Findings", "LabelledImage", "Wanted", "examine"]


@dataclass(frozen=True, eq=False)
class Answers:
    """What the first pass found of every image that it could read: `images` are their numbers in the data."""

    images: Int[np.ndarray, " images"]
    sources: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    hashes: UInt64[np.ndarray, " images"]
    logits: Float[np.ndarray, "images classes"]
    features: Float[np.ndarray, "images width"]
    failures: tuple[tuple[int, str, str], ...] = ()  # number, source, reason

    def only(self, keep: Sequence[int] | np.ndarray) -> "Answers":
        """Returns the answers at these places."""
        at = np.asarray(keep, dtype=np.int64)
        return replace(
            self,
            images=self.images[at],
            sources=tuple(self.sources[i] for i in at),
            labels=tuple(self.labels[i] for i in at),
            hashes=self.hashes[at],
            logits=self.logits[at],
            features=self.features[at],
        )


@dataclass(frozen=True)
class LabelledImage:
    """An image with the scores of its label, low where it is in doubt.

    `image` is its number in the data and `source` its name; `labels` are all that are given, `given` the one in doubt
    and `suggested` what the model would say instead (None where a label is only missing, or only too many). `issue`:
    confident learning finds the label wrong. `group` is the number of its group of near duplicates, None where it is
    alone.
    """

    image: int
    source: str
    labels: tuple[int, ...]
    given: int | None
    suggested: int | None
    margin: float
    self_confidence: float
    p_given: float
    p_suggested: float
    issue: bool
    group: int | None


class Contrast(NamedTuple):
    """A question of two classes about one image: its map is that of `target` against `against`.

    `typical` asks for the map of `target` without class competition, too, in which its typical part is sought.
    """

    target: int
    against: int
    typical: bool = False


@dataclass(frozen=True)
class Wanted:
    """What is wanted of one image of the data: maps of single classes, contrastive maps, and the picture itself."""

    image: int
    singles: tuple[int, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    picture: bool = False  # the whole photograph, too; else a thumbnail, and the model's view where there is a map


@dataclass(frozen=True, eq=False)
class Findings:
    """All labelled images, the most doubtful first; how many of them are suspects; and what is to be drawn.

    `typical` are images of each class that suspects are about, `pairs` the classes whose training labels are tested,
    with the images they are tested on, `margins` the mean logit of the first less that of the second.
    """

    ranked: tuple[LabelledImage, ...]
    suspects: int
    typical: dict[int, tuple[int, ...]]
    pairs: dict[tuple[int, int], tuple[int, ...]]
    margins: dict[tuple[int, int], float]
    joint: Float[np.ndarray, "classes classes"] | None
    wanted: tuple[Wanted, ...]


def examine(
    answers: Answers,
    probabilities: Float[np.ndarray, "images classes"],
    *,
    exclusive: bool,
    suspects: int,
    pairs: int | Sequence[tuple[int, int]],
    pair_images: int,
    typical: int,
    folds: int | None,
    seed: int,
) -> Findings:
    """Ranks the labels, and chooses what the second pass draws; `exclusive` where an image has one class.

    Raises:
        DataError: where no image has a label.
        OptionError: for folds where classes do not exclude each other, or that the data cannot fill.
    """
    known = [place for place, own in enumerate(answers.labels) if own]
    if not known:
        raise DataError(
            "no image that could be read has a label, so there is none to audit; give labels= with the data"
        )
    answers, probabilities = answers.only(known), probabilities[known]
    if exclusive:
        first = np.array([own[0] for own in answers.labels])
        if folds is not None:
            probabilities = out_of_sample(answers.features, first, probabilities, folds=folds, seed=seed)
        probabilities = _joined(answers.labels, probabilities)
        scores = score_labels(first, probabilities)
    else:
        if folds is not None:
            raise OptionError("folds= is for classes that exclude each other: leave it out for a multi-label model")
        scores = score_label_sets(answers.labels, probabilities)
    ranked = _ranked(answers, probabilities, scores)
    chosen = [one for one in ranked if one.issue or one.margin < 0][:suspects]
    doubted = {one.image for one in chosen}
    ranked = (*chosen, *(one for one in ranked if one.image not in doubted))
    shown = _typical(answers, probabilities, ranked, len(chosen), typical)
    tested = _pair_images(answers, probabilities, pairs, pair_images, seed) if exclusive else {}
    margins = {pair: _margin(answers, pair) for pair in tested}
    return Findings(
        ranked, len(chosen), shown, tested, margins, scores.joint, _wanted(ranked, len(chosen), shown, tested)
    )


def _joined(
    labels: Sequence[Sequence[int]], probabilities: Float[np.ndarray, "images classes"]
) -> Float[np.ndarray, "images classes"]:
    """Returns probabilities in which all labels of an image count as its first."""
    if all(len(own) == 1 for own in labels):
        return probabilities
    joined = probabilities.copy()
    for row, own in zip(joined, labels, strict=True):
        whole = row[list(own)].sum()
        row[list(own)] = 0.0
        row[own[0]] = whole
    return joined


def _ranked(
    answers: Answers, probabilities: Float[np.ndarray, "images classes"], scores: LabelScores
) -> tuple[LabelledImage, ...]:
    """Returns all images, those with the lowest margin first."""
    groups = duplicate_groups(answers.hashes)
    order = np.argsort(scores.margin, kind="stable")

    def one(place: int) -> LabelledImage:
        given, suggested = int(scores.given[place]), int(scores.suggested[place])
        return LabelledImage(
            image=int(answers.images[place]),
            source=answers.sources[place],
            labels=answers.labels[place],
            given=given if given >= 0 else None,
            suggested=suggested if suggested >= 0 else None,
            margin=float(scores.margin[place]),
            self_confidence=float(scores.self_confidence[place]),
            p_given=float(probabilities[place, given]) if given >= 0 else 0.0,
            p_suggested=float(probabilities[place, suggested]) if suggested >= 0 else 0.0,
            issue=bool(scores.issue[place]),
            group=int(groups[place]) if groups[place] >= 0 else None,
        )

    return tuple(one(place) for place in order.tolist())


def _typical(
    answers: Answers,
    probabilities: Float[np.ndarray, "images classes"],
    ranked: Sequence[LabelledImage],
    suspects: int,
    count: int,
) -> dict[int, tuple[int, ...]]:
    """Returns for each class that a suspect is about the images that the model is surest of among those labelled so.

    Of near duplicates one is shown, and no suspect.
    """
    asked = {index for one in ranked[:suspects] for index in (one.given, one.suggested) if index is not None}
    doubted = {one.image for one in ranked[:suspects]}
    groups = {one.image: one.group for one in ranked}
    by_class: dict[int, list[int]] = defaultdict(list)
    for place, own in enumerate(answers.labels):
        for index in asked.intersection(own):
            by_class[index].append(place)
    found = {}
    for index in sorted(asked):
        places, seen, kept = by_class[index], set(), []
        for place in sorted(places, key=lambda place: (-probabilities[place, index], place)):
            image = int(answers.images[place])
            group = groups[image]
            if image in doubted or (group is not None and group in seen):
                continue
            seen.add(group)
            kept.append(image)
            if len(kept) == count:
                break
        found[index] = tuple(kept)
    return found


def _pair_images(
    answers: Answers,
    probabilities: Float[np.ndarray, "images classes"],
    pairs: int | Sequence[tuple[int, int]],
    most: int,
    seed: int,
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Returns the pairs of classes that are tested, and up to `most` images of the first class, drawn at random."""
    labels = np.array([own[0] for own in answers.labels])
    asked = confusable_pairs(labels, probabilities, count=pairs) if isinstance(pairs, int) else list(pairs)
    found = {}
    for shown, other in dict.fromkeys(asked):
        own = np.flatnonzero(labels == shown)
        if len(own) > most:
            own = np.sort(np.random.default_rng((seed, shown)).permutation(own)[:most])
        if len(own):
            found[shown, other] = tuple(answers.images[own].tolist())
    return found


def _margin(answers: Answers, pair: tuple[int, int]) -> float:
    own = np.array([labels[0] == pair[0] for labels in answers.labels])
    return float((answers.logits[own, pair[0]] - answers.logits[own, pair[1]]).astype(np.float64).mean())


def _wanted(
    ranked: Sequence[LabelledImage],
    suspects: int,
    typical: dict[int, tuple[int, ...]],
    pairs: dict[tuple[int, int], tuple[int, ...]],
) -> tuple[Wanted, ...]:
    found: dict[int, Wanted] = {}
    for one in ranked[:suspects]:
        classes = tuple(index for index in (one.given, one.suggested) if index is not None)
        both = (Contrast(*classes),) if len(classes) == 2 else ()
        found[one.image] = Wanted(one.image, classes, both, picture=True)
    doubted = {one.group for one in ranked[:suspects]} - {None}
    duplicates = [one.image for one in ranked if one.group in doubted]
    for image in (*duplicates, *(image for images in typical.values() for image in images)):
        found.setdefault(image, Wanted(image))
    for (shown, other), images in pairs.items():
        for image in images:
            before = found.get(image, Wanted(image))
            asked = Contrast(shown, other, typical=True)
            found[image] = replace(before, contrasts=(*before.contrasts, asked))
    return tuple(found[image] for image in sorted(found))
