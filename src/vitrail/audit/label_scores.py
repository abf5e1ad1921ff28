"""How probable each given label is: confident learning (Northcutt, Jiang, Chuang 2021) and the margin.

With p_k the probability of class k of an image whose given label is g,

    self-confidence   p_g
    margin            p_g − max_{k ≠ g} p_k          from −1, sure of another class, to 1, sure of g

of which the lowest are the suspects. Where labels do not exclude each other (a sigmoid per class), each label of an
image is given or not, s_k is p_k or 1 − p_k, and both scores are those of the label in most doubt: min_k s_k, and
2 min_k s_k − 1. Confident learning is the library's own, cleanlab.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from ..errors import OptionError, how_to_install

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["LabelScores", "check_cleanlab", "out_of_sample", "score_label_sets", "score_labels"]


@dataclass(frozen=True, eq=False)
class LabelScores:
    """Scores of the given labels, one entry per image, low where a label is in doubt.

    `given` is the label in doubt and `suggested` what the model would say instead, −1 where there is none (labels that
    do not exclude each other: one may only be missing, or only be too many). `issue` marks what confident learning
    finds. `joint` is its estimate of the joint distribution of given (rows) and true (columns) labels; None for label
    sets.
    """

    given: Int[np.ndarray, " images"]
    suggested: Int[np.ndarray, " images"]
    margin: Float[np.ndarray, " images"]
    self_confidence: Float[np.ndarray, " images"]
    issue: Bool[np.ndarray, " images"]
    joint: Float[np.ndarray, "classes classes"] | None = None


def score_labels(labels: Int[np.ndarray, " images"], probabilities: Float[np.ndarray, "images classes"]) -> LabelScores:
    """Returns the scores of one label per image; the suggested class is the most probable other one.

    Classes that no image is labelled with take part as suggestions, and not in confident learning.

    Raises:
        OptionError: where cleanlab is not installed.

    Example:
        >>> found = score_labels(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]))
        >>> found.margin.round(1).tolist(), found.suggested.tolist()
        ([0.8, 0.6, -0.4], [1, 0, 0])
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -1.0
    suggested = others.argmax(axis=1)
    issue, joint = _confident_learning(labels, probabilities)
    return LabelScores(labels, suggested, own - others[rows, suggested], own, issue, joint)


def score_label_sets(
    labels: Sequence[Sequence[int]], probabilities: Float[np.ndarray, "images classes"]
) -> LabelScores:
    """Returns the scores of label sets; a label that is not given counts as absent.

    Where a given label is in most doubt, the suggestion is the most probable label that is not given, if it is more
    probable than not; where an absent one is, `given` is the most probable given label.

    Raises:
        OptionError: where cleanlab is not installed.

    Example:
        >>> found = score_label_sets([[0], [0, 1]], np.array([[0.9, 0.8], [0.9, 0.3]]))
        >>> found.given.tolist(), found.suggested.tolist(), found.self_confidence.round(1).tolist()
        ([0, 1], [1, -1], [0.2, 0.3])
    """
    present = np.zeros(probabilities.shape, dtype=bool)
    for row, own in zip(present, labels, strict=True):
        row[list(own)] = True
    rows = np.arange(len(labels))
    confidence = np.where(present, probabilities, 1 - probabilities)
    doubted = confidence.argmin(axis=1)
    best_given = np.where(present.any(axis=1), np.where(present, probabilities, -1.0).argmax(axis=1), -1)
    best_absent = np.where(present, -1.0, probabilities).argmax(axis=1)
    likely = ~present[rows, best_absent] & (probabilities[rows, best_absent] > 0.5)
    too_many = present[rows, doubted]
    least = confidence[rows, doubted]
    asked = np.flatnonzero(present.any(axis=0) & ~present.all(axis=0))  # confident learning needs images of both kinds
    issue = np.zeros(len(present), dtype=bool)
    if len(asked):
        sets = [np.flatnonzero(row).tolist() for row in present[:, asked]]
        filters = _cleanlab("multilabel_classification.filter")
        with _quiet():
            issue[:] = filters.find_label_issues(
                sets, probabilities[:, asked], filter_by="confident_learning", n_jobs=1
            )
    return LabelScores(
        given=np.where(too_many, doubted, best_given),
        suggested=np.where(too_many, np.where(likely, best_absent, -1), doubted),
        margin=2 * least - 1,
        self_confidence=least,
        issue=issue,
    )


def _confident_learning(
    labels: Int[np.ndarray, " images"], probabilities: Float[np.ndarray, "images classes"]
) -> tuple[Bool[np.ndarray, " images"], Float[np.ndarray, "classes classes"]]:
    """Returns which labels confident learning finds wrong, and the joint of given and true labels that it estimates.

    It is asked among the classes that are given at all: it needs an image of each.
    """
    filters, count = _cleanlab("filter"), _cleanlab("count")
    classes, places = np.unique(labels, return_inverse=True)
    joint = np.zeros((probabilities.shape[1],) * 2)
    if len(classes) < 2:
        return np.zeros(len(labels), dtype=bool), joint
    among = probabilities[:, classes]
    among = np.clip(among, np.finfo(np.float64).tiny, None)
    among /= among.sum(axis=1, keepdims=True)
    confident = count.compute_confident_joint(places, among)
    joint[np.ix_(classes, classes)] = confident / confident.sum()
    with _quiet():
        issue = filters.find_label_issues(places, among, filter_by="confident_learning", n_jobs=1)
    return np.asarray(issue, dtype=bool), joint


def out_of_sample(
    features: Float[np.ndarray, "images width"],
    labels: Int[np.ndarray, " images"],
    probabilities: Float[np.ndarray, "images classes"],
    *,
    folds: int,
    seed: int = 0,
) -> Float[np.ndarray, "images classes"]:
    """Returns probabilities of a linear classifier on the features, each image's from the other folds.

    A model that was trained on these very labels is surer of them than it should be. Images of classes with fewer
    images than folds keep the model's own probabilities.

    Raises:
        OptionError: for fewer than two folds, or fewer than two classes with enough images.

    Example:
        >>> features = np.array([[0.0], [0.1], [0.9], [1.0]])
        >>> flat = np.full((4, 2), 0.5)
        >>> (out_of_sample(features, np.array([0, 0, 1, 1]), flat, folds=2)[:, 1] > 0.5).tolist()
        [False, False, True, True]
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if folds < 2:
        raise OptionError(f"folds={folds} must be 2 or more")
    enough = np.flatnonzero(np.bincount(labels, minlength=probabilities.shape[1]) >= folds)
    asked = np.isin(labels, enough)
    if len(enough) < 2:
        raise OptionError(
            f"folds={folds} needs two classes of at least {folds} images each, and {len(enough)} are there: give fewer "
            "folds, or none"
        )
    found = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        features[asked].astype(np.float64),
        labels[asked],
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="predict_proba",
    )
    mixed = probabilities.astype(np.float64).copy()
    mixed[asked] = 0.0
    mixed[np.ix_(asked, enough)] = np.asarray(found)
    return mixed


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences cleanlab's warnings about classes of few images, which an audit of any size has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def check_cleanlab() -> None:
    """Raises `OptionError` where cleanlab is not installed."""
    _cleanlab("filter")


def _cleanlab(name: str) -> "ModuleType":
    from importlib import import_module

    try:
        return import_module(f"cleanlab.{name}")
    except ImportError as error:
        raise OptionError(f"an audit needs cleanlab: {how_to_install('audit')}") from error
