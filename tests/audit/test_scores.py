"""Scores of labels, near duplicates and the sign test of class pairs, against literal references."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vitrail.audit.class_pairs import confusable_pairs, sign_tests, typical_share
from vitrail.audit.duplicates import duplicate_groups, perceptual_hash
from vitrail.audit.label_scores import out_of_sample, score_label_sets, score_labels
from vitrail.errors import OptionError


def softmax_rows(seed: int, images: int = 40, classes: int = 5) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(images, classes)) * 2
    shares = np.exp(logits)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_margin_and_self_confidence_are_their_formulas(seed):
    probabilities = softmax_rows(seed)
    labels = np.random.default_rng(seed + 9).integers(0, 5, len(probabilities))
    found = score_labels(labels, probabilities)
    for row, label in enumerate(labels):
        others = {k: probabilities[row, k] for k in range(5) if k != label}
        best = max(others, key=lambda k: others[k])
        assert found.suggested[row] == best
        assert found.margin[row] == pytest.approx(probabilities[row, label] - others[best])
        assert found.self_confidence[row] == probabilities[row, label]


def test_confident_learning_finds_planted_errors_and_their_pair():
    true = np.repeat(np.arange(3), 60)
    probabilities = np.full((180, 3), 0.05)
    probabilities[np.arange(180), true] = 0.9
    labels = true.copy()
    planted = np.arange(0, 60, 5)  # images of class 0 that are labelled 1, of which the model is surer than usual
    labels[planted] = 1
    probabilities[planted] = [0.96, 0.02, 0.02]
    found = score_labels(labels, probabilities)
    assert set(np.flatnonzero(found.issue)) == set(planted)
    assert found.joint is not None
    assert found.joint[1, 0] == pytest.approx(12 / 180, abs=0.01)
    assert np.delete(found.joint.ravel(), [0, 3, 4, 8]).max() < 0.01


def test_classes_that_no_image_is_labelled_with_are_suggested_all_the_same():
    probabilities = np.array([[0.1, 0.1, 0.8], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1]])
    found = score_labels(np.array([0, 0, 1]), probabilities)
    assert found.suggested.tolist()[0] == 2
    assert found.joint is not None
    assert found.joint[2].sum() == 0


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_label_sets_name_the_label_in_most_doubt(data):
    classes = data.draw(st.integers(2, 4))
    rows = data.draw(st.integers(1, 6))
    unit = st.floats(0.01, 0.99)
    probabilities = data.draw(arrays(np.float64, (rows, classes), elements=unit))
    labels = [data.draw(st.sets(st.integers(0, classes - 1), min_size=1)) for _ in range(rows)]
    found = score_label_sets([sorted(own) for own in labels], probabilities)
    for row, own in enumerate(labels):
        confidence = [p if k in own else 1 - p for k, p in enumerate(probabilities[row])]
        doubted = int(np.argmin(confidence))
        assert found.self_confidence[row] == pytest.approx(confidence[doubted])
        assert found.margin[row] == pytest.approx(2 * confidence[doubted] - 1)
        if doubted in own:
            assert found.given[row] == doubted
            suggested = found.suggested[row]
            assert suggested == -1 or (suggested not in own and probabilities[row, suggested] > 0.5)
        else:
            assert found.suggested[row] == doubted
            assert found.given[row] in own


def test_out_of_sample_probabilities_come_from_the_other_folds():
    """A wrong label that the image's own fit would learn by heart stays improbable."""
    rng = np.random.default_rng(1)
    true = np.repeat([0, 1], 30)
    features = rng.normal(size=(60, 2)) * 0.2 + true[:, None] * 3
    labels = true.copy()
    labels[:3] = 1
    sure = np.eye(2)[labels] * 0.98 + 0.01  # the model has them by heart
    found = out_of_sample(features, labels, sure, folds=5)
    assert (found[:3, 1] < 0.5).all()
    assert (found[np.arange(3, 60), labels[3:]] > 0.5).all()
    assert np.allclose(found.sum(axis=1), 1)
    with pytest.raises(OptionError, match="folds=40 needs two classes of at least 40 images each, and 0 are there"):
        out_of_sample(features, labels, sure, folds=40)
    rare = np.r_[labels, 2]
    kept = out_of_sample(
        np.r_[features, [[9.0, 9.0]]], rare, np.c_[np.r_[sure, [[0.2, 0.2]]], np.full(61, 0.0)], folds=5
    )
    assert kept[-1].tolist() == [0.2, 0.2, 0.0]  # of a class with one image: the model's own


@settings(max_examples=25, deadline=None)
@given(arrays(np.uint64, st.integers(1, 12), elements=st.sampled_from([0, 1, 3, 7, 2**63, 2**63 + 1, 2**40])))
def test_groups_are_the_connected_components(hashes):
    groups = duplicate_groups(hashes, near=1)
    linked = [[(int(a) ^ int(b)).bit_count() <= 1 for b in hashes] for a in hashes]
    reach = np.linalg.matrix_power(np.array(linked, dtype=object), len(hashes)) > 0
    for i in range(len(hashes)):
        others = [j for j in range(len(hashes)) if j != i and reach[i][j]]
        assert (groups[i] == -1) == (not others)
        assert all(groups[j] == groups[i] for j in others)


def test_a_smaller_copy_is_a_near_duplicate_and_another_picture_is_not():
    noise = Image.effect_noise((320, 240), 90).convert("RGB").resize((64, 48)).resize((320, 240))
    other = Image.effect_noise((320, 240), 90).convert("RGB").resize((64, 48)).resize((320, 240))
    hashes = [perceptual_hash(one) for one in (noise, noise.resize((200, 150)), other)]
    assert duplicate_groups(np.array(hashes, dtype=np.uint64)).tolist() == [0, 0, -1]


def test_pairs_are_those_with_the_highest_mean_probability():
    probabilities = np.array([[0.6, 0.4, 0.0], [0.8, 0.2, 0.0], [0.1, 0.7, 0.2], [0.0, 0.1, 0.9]])
    labels = np.array([0, 0, 1, 2])
    assert confusable_pairs(labels, probabilities, count=2, least=1) == [(0, 1), (1, 2)]
    assert confusable_pairs(labels, probabilities, count=9, least=2) == [(0, 1)]


def test_the_typical_part_is_the_strongest_tenth():
    rng = np.random.default_rng(3)
    single, contrast = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    flat = sorted(((value, c) for value, c in zip(single.ravel(), contrast.ravel(), strict=True)), reverse=True)[:4]
    expected = sum(c for _, c in flat) / sum(abs(c) for _, c in flat)
    assert typical_share(single, contrast) == pytest.approx(expected)
    assert typical_share(single, np.zeros((7, 5))) == 0.0


def test_sign_tests_are_binomial_and_corrected_together():
    balances = {(0, 1): [-1.0] * 9 + [1.0], (1, 0): [1.0] * 10, (2, 0): [-1.0] * 6 + [1.0] * 4, (3, 0): [0.0] * 5}
    found = {(one.shown, one.other): one for one in sign_tests(balances, dict.fromkeys(balances, 0.0))}
    assert (3, 0) not in found  # nothing argues for either
    tails = {pair: sum(math.comb(10, k) for k in range(wrong, 11)) / 2**10 for pair, wrong in
             {(0, 1): 9, (1, 0): 0, (2, 0): 6}.items()}  # fmt: skip
    for pair, tail in tails.items():
        assert found[pair].p == pytest.approx(tail)
    # Benjamini and Hochberg: p of rank r times the number of tests over r, and no larger than those that follow.
    ordered = sorted(tails.values())
    expected = min(3 * ordered[0], 3 * ordered[1] / 2, 3 * ordered[2] / 3)
    assert found[0, 1].adjusted == pytest.approx(expected)
    assert next(iter(found)) == (0, 1)
    assert found[0, 1].low < 0.9 < found[0, 1].high
