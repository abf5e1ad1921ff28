"""The perturbation protocol against a literal NumPy version, and against the released script's own numbers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vitrail.errors import OptionError
from vitrail.metrics.faithfulness.perturbation import AREAS, SHARES, area, outcome, perturb
from vitrail.metrics.maps import enlarged
from vitrail.metrics.removal import kept_tokens, ranking


def literal(image: np.ndarray, scores: np.ndarray, share: float, highest: bool, fill: list, allowed: np.ndarray):
    """Place by place, in float64: rank, then fill the first int(share · places)."""
    image, patch = image.copy(), image.shape[-1] // scores.shape[-1]
    places = [(r, c) for r in range(scores.shape[0]) for c in range(scores.shape[1]) if allowed[r, c]]
    places = sorted(places, key=lambda place: -scores[place] if highest else scores[place])  # which is stable
    for row, col in places[: int(len(places) * share)]:
        for channel, value in enumerate(fill):
            image[channel, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch] = value
    return image


@pytest.mark.parametrize("highest", [True, False])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("side", [4, 12])  # patches of three pixels, and single pixels
def test_filled_as_a_literal_loop_fills(highest, share, side):
    generator = np.random.default_rng(side)
    images = generator.random((2, 3, 12, 12))
    scores = generator.integers(-3, 4, (2, side, side)).astype(float)  # with many ties
    allowed = generator.random((side, side)) > 0.3
    for may in (None, allowed):
        found = perturb(
            torch.from_numpy(images),
            torch.from_numpy(scores),
            share,
            highest=highest,
            fill=torch.tensor([0.1, 0.2, 0.3]).double(),
            allowed=None if may is None else torch.from_numpy(may),
        )
        whole = np.ones((side, side), dtype=bool)
        for image, one, own in zip(found.numpy(), images, scores, strict=True):
            expected = literal(one, own, share, highest, [0.1, 0.2, 0.3], whole if may is None else may)
            np.testing.assert_allclose(image, expected, rtol=1e-6)


def test_dropped_tokens_are_those_whose_patches_would_be_filled():
    scores = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    for share in SHARES:
        kept = kept_tokens(ranking(scores.flatten(1)), share, prefix=2)
        filled = perturb(torch.ones(2, 1, 4, 4), scores, share)
        for tokens, image in zip(kept, filled, strict=True):
            assert tokens.tolist() == [0, 1, *(2 + image.flatten().nonzero()[:, 0]).tolist()]


def test_the_three_areas_are_what_their_names_say():
    curve = torch.rand(5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    heights, x = curve.numpy(), np.arange(10) / 10
    expected = {
        "bi": np.trapezoid(np.concatenate([heights, np.zeros((5, 1))], axis=1), np.append(x, 1.0)),
        "trapz_01_09": np.trapezoid(heights[:, 1:], x[1:]) / 0.8,
        "mean9": heights[:, 1:].mean(axis=1),
    }
    assert set(expected) == set(AREAS)
    for name, value in expected.items():
        np.testing.assert_allclose(area(curve, name).numpy(), value, rtol=1e-12)


def test_a_map_without_differences_becomes_zero():
    assert enlarged(torch.full((2, 3, 3), 7.0), (6, 6)).abs().max() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perturb(torch.ones(3, 10, 10), torch.ones(4, 4), 0.5), "map of 4×4 places does not divide .* 10×10"),
        (lambda: perturb(torch.ones(3, 8, 8), torch.ones(4, 4), 1.5), "share=1.5 of the image is not between 0 and 1"),
        (lambda: area(torch.ones(9)), "9 values does not fit 9 shares"),
        (lambda: area(torch.ones(10), "auc"), "convention='auc' .* bi, trapz_01_09, mean9"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable, message):
    with pytest.raises(OptionError, match=message):
        call()


# -- the released script on the real model ----------------------------------------------------------------------------


def _as_topk_goes(pixels, scores, share: float, highest: bool):
    """The pixels that torch.topk names, black: as the released script takes them, ties in whatever order topk has."""
    flat = scores.flatten(1) if highest else -scores.flatten(1)
    gone = torch.zeros_like(flat, dtype=torch.bool).scatter(1, flat.topk(int(flat.shape[1] * share)).indices, True)
    return pixels.masked_fill(gone.unflatten(1, scores.shape[1:])[:, None], 0.0)


def _compare(shared, vit_tiny, name: str, way: str, images: slice):
    """Hits and margins on some of the oracle's images, by our ranking and by the released script's."""
    oracle = np.load(shared / "oracles" / "perturbation_tattr_protocol.npz")
    pixels = torch.from_numpy(oracle["images_uint8"][images]).permute(0, 3, 1, 2).float() / 255
    scores = enlarged(torch.from_numpy(oracle[f"{name}/maps"][images]).float(), (224, 224))
    label = torch.from_numpy(oracle["labels"][images])
    highest = way == "pos"
    with torch.no_grad():

        def ask(some):
            return torch.cat([vit_tiny.logits((part - 0.5) / 0.5) for part in some.split(16)])

        original = ask(pixels)
        ours = [outcome(ask(perturb(pixels, scores, s, highest=highest)), label, original) for s in SHARES]
        theirs = [outcome(ask(_as_topk_goes(pixels, scores, s, highest)), label, original) for s in SHARES]
    plain = outcome(original, label, original)
    np.testing.assert_array_equal(plain.hit.numpy(), oracle["model_hits"][images])
    for found in (ours, theirs):
        assert np.array_equal(np.stack([one.hit.numpy() for one in found]), oracle[f"{name}/{way}/hits"][:, images])
    for field, name_here in (
        ("dissimilarities", "dissimilarity"),
        ("logit_diff", "logit_change"),
        ("prob_diff", "probability_change"),
    ):
        expected = oracle[f"{name}/{way}/{field}"][:, images]
        values = np.stack([getattr(one, name_here).numpy() for one in theirs])
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)
        # Bilinear enlargement repeats values at the borders: where the cut falls between equals, our ranking takes the
        # first by position, and another few pixels are black than with topk.
        values = np.stack([getattr(one, name_here).numpy() for one in ours])
        assert np.isclose(values, expected, rtol=1e-4, atol=1e-4).mean() >= 0.75
    return oracle, plain, ours


def test_only_ties_are_ranked_otherwise_than_by_the_released_script():
    generator = torch.Generator().manual_seed(0)
    scores = enlarged(torch.rand(1, 14, 14, generator=generator), (224, 224)).flatten(1)
    for share in SHARES:
        count = int(scores.shape[1] * share)
        ours = ranking(scores)[0, :count]
        theirs = scores.topk(count).indices[0]
        torch.testing.assert_close(scores[0, ours], scores[0, theirs], rtol=0, atol=0)
        apart = set(ours.tolist()) ^ set(theirs.tolist())
        assert scores[0, list(apart)].eq(scores[0, ours[-1]]).all()


@pytest.mark.parametrize("way", ["pos", "neg"])
def test_the_released_script_s_numbers_on_two_images(shared, vit_tiny, way):
    _compare(shared, vit_tiny, "gae_target", way, slice(3, 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gae_top", "rollout_start1", "tattr_start1_top"])
@pytest.mark.parametrize("way", ["pos", "neg"])
def test_the_released_script_s_accuracies_and_area_on_all_images(shared, vit_tiny, name, way):
    oracle, plain, found = _compare(shared, vit_tiny, name, way, slice(None))
    hits = torch.stack([plain.hit, *(one.hit for one in found)]).double()
    assert hits[1:].mean(dim=1).tolist() == pytest.approx(oracle[f"{name}/{way}/acc"].tolist())
    assert float(area(hits.T, "bi").mean()) == pytest.approx(float(oracle[f"{name}/{way}/auc_bi"]))
