"""Perturbation and MIF/LIF as they are run: against literal loops, and the released script on the real model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from perturbation_reference import softmax
from protocol_driver import by_measure, case_of, drive
from torch import Tensor
from torch.nn.functional import interpolate

from vitrail.errors import OptionError, UnknownProtocolError
from vitrail.metrics import find_protocol
from vitrail.metrics.aggregation import Curves
from vitrail.metrics.faithfulness.perturbation import AREAS, SHARES, area
from vitrail.metrics.removal import FILLS, filling

SIDE, PATCH, CLASSES = 12, 4, 5


def linear(images: Tensor) -> Tensor:
    """A model whose answer depends on every pixel in its own way."""
    weights = torch.randn(3 * SIDE * SIDE, CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.tanh(images.double().flatten(1) @ weights / 6) * 4


def sums_of_tokens(image: Tensor, patches: Tensor) -> Tensor:
    """A model that reads the mean of the patches which are there."""
    tokens = (
        image.double().unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    )
    weights = torch.randn(tokens.shape[1], CLASSES, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return torch.stack([(tokens[kept] @ weights).mean(dim=0) for kept in patches])


def one(seed: int = 0, **known):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    scores = torch.randn(SIDE // PATCH, SIDE // PATCH, generator=generator, dtype=torch.float64)
    usual = {"label": 2, "black": (-2.0, -1.5, -1.0), "seed": 7}
    return case_of(image, linear(image[None])[0], **(usual | known)), scores


def literal(case, scores: np.ndarray, shares, highest: bool, ground: np.ndarray) -> list[np.ndarray]:
    """Pixel by pixel, or patch by patch: sort, and copy the ground's pixels."""
    images, patch = [], SIDE // scores.shape[0]
    order = np.argsort(-scores.flatten() if highest else scores.flatten(), kind="stable")
    for share in shares:
        image = case.image.numpy().copy()
        for place in order[: int(scores.size * share)]:
            row, col = np.unravel_index(place, scores.shape)
            here = (slice(None), slice(row * patch, (row + 1) * patch), slice(col * patch, (col + 1) * patch))
            image[here] = ground[here]
        images.append(image)
    return images


def results(logits: np.ndarray, label: int, original: np.ndarray) -> dict[str, float]:
    p, first = softmax(logits), softmax(original)
    return {
        "hit": float(logits.argmax() == label),
        "dissimilarity": float(np.log(p[label] / np.sort(p)[-2])),
        "logit_change": float(logits.max() - original.max()),
        "probability_change": float(p.max() - first.max()),
    }


@pytest.mark.parametrize("unit", ["pixel", "patch"])
@pytest.mark.parametrize("fill", FILLS)
def test_what_is_measured_is_what_a_literal_loop_measures(unit, fill):
    case, scores = one()
    found = by_measure(
        drive("perturbation", case, scores, linear, unit=unit, fill=fill, shares=(0.15, 0.4, 0.95), batch=4)
    )
    places = scores
    if unit == "pixel":
        places = interpolate(scores[None, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    for way in ("positive", "negative"):
        images = literal(case, places.numpy(), (0.15, 0.4, 0.95), way == "positive", filling(case, fill).numpy())
        original = case.logits.numpy()
        told = [results(original, 2, original)]
        told += [results(linear(torch.from_numpy(image)[None])[0].numpy(), 2, original) for image in images]
        for measure in told[0]:
            np.testing.assert_allclose(found[f"{way}.{measure}"], [step[measure] for step in told], atol=1e-9)


def test_tokens_leave_the_sequence_in_both_orders_at_once():
    case, scores = one(1)
    asked = []

    def tokens(image, patches):
        asked.append(patches)
        return sums_of_tokens(image, patches)

    measured = drive("perturbation", case, scores, tokens=tokens, unit="token", shares=(0.2, 0.5, 0.9))
    order = np.argsort(-scores.numpy().flatten(), kind="stable")
    assert [tuple(patches.shape) for patches in asked] == [(2, 8), (2, 5), (2, 1)]
    found, original = by_measure(measured), case.logits.numpy()
    for way, ranked in (("positive", order), ("negative", order[::-1])):
        for step, gone in enumerate((1, 4, 8)):
            kept = sorted(ranked[gone:].tolist())
            assert asked[step][0 if way == "positive" else 1].tolist() == kept
            told = results(sums_of_tokens(case.image, torch.tensor([kept]))[0].numpy(), 2, original)
            for measure, value in told.items():
                assert found[f"{way}.{measure}"][step + 1] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("auc", AREAS)
def test_the_summary_is_the_area_under_the_mean_accuracy(auc):
    runs = [by_measure(drive("perturbation", *one(seed), linear, unit="patch", auc=auc)) for seed in range(4)]
    info = find_protocol("perturbation", {"auc": auc})
    values = {measure: np.array([run[measure] for run in runs]) for measure in runs[0]}
    steps = dict.fromkeys(values, (0.0, *SHARES))
    found = info.summarise(Curves(np.arange(4), steps, values), auc=auc, unit="patch")
    for way, better in (("positive", -1), ("negative", 1)):
        mean = torch.from_numpy(values[f"{way}.hit"].mean(axis=0))
        assert found[f"{way} AUC"].value() == pytest.approx(float(area(mean, auc)))
        assert found[f"{way} AUC"].better == better


def test_a_class_that_has_lost_by_far_has_a_finite_margin():
    case, scores = one()
    sure = lambda images: torch.tensor([[0.0, 200.0, -200.0, 0.0, 0.0]]).expand(len(images), -1)  # noqa: E731
    case = case_of(case.image.float(), sure(case.image[None])[0], label=2)
    found = by_measure(drive("perturbation", case, scores.float(), sure))
    assert found["positive.dissimilarity"] == [-200.0] * 10


@pytest.mark.parametrize("unit", ["pixel", "patch", "token"])
@pytest.mark.parametrize("score", ["hit", "probability"])
def test_mif_and_lif_are_the_two_ways_and_srg_their_gap(unit, score):
    case, scores = one(3)
    model, tokens = (linear, None) if unit != "token" else (None, sums_of_tokens)
    options = {"unit": unit, "shares": (0.3, 0.6)}
    found = by_measure(drive("mif_lif", case, scores, model, tokens=tokens, score=score, **options))
    seen = []

    def spy(*question):
        seen.append((model or tokens)(*question))
        return seen[-1]

    ask = {"model": spy} if unit != "token" else {"tokens": spy}
    drive("perturbation", case, scores, **ask, **options)
    logits = torch.cat(seen) if unit != "token" else torch.stack(seen, dim=1).flatten(0, 1)
    asked = case.predicted
    expected = (logits.argmax(1) == asked).double() if score == "hit" else logits.softmax(1)[:, asked]
    assert found[f"mif.{score}"] + found[f"lif.{score}"] == pytest.approx(expected.tolist())
    values = {measure: np.array([row]) for measure, row in found.items()}
    curves = Curves(np.arange(1), dict.fromkeys(values, (0.3, 0.6)), values)
    summary = find_protocol("mif_lif").summarise(curves, score=score, **options)
    mif, lif = np.mean(found[f"mif.{score}"]), np.mean(found[f"lif.{score}"])
    assert summary[f"MIF {score}"].value() == pytest.approx(mif)
    assert summary["SRG"].value() == pytest.approx(lif - mif)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "head"}, "unit='head' is unknown; choose one of pixel, patch, token"),
        ({"fill": "red"}, "fill='red' is unknown; choose one of black, mean, zero, blur"),
        ({"unit": "token", "fill": "red"}, "fill='red' is unknown"),
        ({"auc": "trapezoid"}, "auc='trapezoid' is unknown; choose one of bi, trapz_01_09, mean9"),
        ({"shares": (0.5, 0.2)}, r"shares=\(0.5, 0.2\) must ascend"),
        ({"shares": (0.5, 0.5)}, "must ascend, each but once"),
        ({"shares": (0.5, 1.0)}, "must each lie above 0 and below 1"),
        ({"shares": ()}, "takes nothing out"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_question(options, message):
    case, scores = one()
    with pytest.raises(OptionError, match=message):
        drive("perturbation", case, scores, **options)


def test_a_map_that_does_not_fit_and_an_unknown_protocol_are_refused():
    case, _ = one()
    with pytest.raises(OptionError, match="map of 5×5 places does not divide an image of 12×12 pixels"):
        drive("perturbation", case, torch.zeros(5, 5))
    with pytest.raises(UnknownProtocolError, match="no protocol is called 'peturbation'"):
        find_protocol("peturbation")
    with pytest.raises(OptionError, match="perturbation has no option 'units'; its own: unit, fill, auc, shares"):
        find_protocol("perturbation", {"units": 1})


# -- the released script on the real model ----------------------------------------------------------------------------


def measured_on(shared, vit_tiny, name: str, images: slice) -> tuple[SimpleNamespace, dict[str, np.ndarray]]:
    """The registered protocol on some of the oracle's images, asked through the driver: measure → (images, steps)."""
    with np.load(shared / "oracles" / "perturbation_tattr_protocol.npz") as held:
        keys = ["images_uint8", "labels", f"{name}/maps"]
        pixels, labels, maps = (held[key][images] for key in keys)
        oracle = SimpleNamespace(
            model_hits=held["model_hits"][images],
            **{
                f"{way}_{field}": held[f"{name}/{way}/{field}"]
                for way in ("pos", "neg")
                for field in ("hits", "acc", "dissimilarities", "auc_bi")
            },
        )
    inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    rows = []
    for image, label, scores in zip(inputs, labels, maps, strict=True):
        with torch.no_grad():
            logits = vit_tiny.logits(image[None])[0]
        case = case_of(image, logits, label=int(label), grid=(14, 14))
        rows.append(
            by_measure(drive("perturbation", case, torch.from_numpy(scores).float(), vit_tiny.logits, batch=18))
        )
    return oracle, {measure: np.array([row[measure] for row in rows]) for measure in rows[0]}


@pytest.mark.parametrize("name", ["gae_target"])
def test_the_released_script_s_hits_on_two_images(shared, vit_tiny, name):
    oracle, found = measured_on(shared, vit_tiny, name, slice(3, 5))
    for way, theirs in (("positive", oracle.pos_hits), ("negative", oracle.neg_hits)):
        assert np.array_equal(found[f"{way}.hit"][:, 0], oracle.model_hits)
        assert np.array_equal(found[f"{way}.hit"][:, 1:].T, theirs[:, 3:5])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gae_top", "gae_target", "rollout_start1", "tattr_start1_top", "tattr_start1_top_f64map"]
)
def test_the_released_script_s_accuracy_curves_and_areas(shared, vit_tiny, name):
    oracle, found = measured_on(shared, vit_tiny, name, slice(None))
    curves = Curves(np.arange(40), dict.fromkeys(found, (0.0, *SHARES)), found)
    summary = find_protocol("perturbation").summarise(curves)
    for way, short in (("positive", "pos"), ("negative", "neg")):
        np.testing.assert_array_equal(
            found[f"{way}.hit"][:, 1:].mean(axis=0).round(6), getattr(oracle, f"{short}_acc").round(6)
        )
        assert np.array_equal(found[f"{way}.hit"][:, 1:].T, getattr(oracle, f"{short}_hits"))
        assert summary[f"{way} AUC"].value() == pytest.approx(float(getattr(oracle, f"{short}_auc_bi")), abs=1e-9)
        # Where the cut falls between equal scores, other pixels are black than with topk; elsewhere all is the same.
        near = np.isclose(
            found[f"{way}.dissimilarity"][:, 1:].T, getattr(oracle, f"{short}_dissimilarities"), atol=1e-3
        )
        assert near.mean() > 0.75
