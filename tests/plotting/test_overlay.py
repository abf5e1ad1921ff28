"""A map over its image: the scale, the places, the picture underneath."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitrail.plotting.overlay import colour, enlarge, overlay, strength

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
MAP = np.array([[1.0, -0.5, 0.0, 0.25], [-2.0, 0.0, 2.0, 0.5], [0.0, 0.0, 0.0, -1.0]])


def test_scale_is_the_largest_absolute_score() -> None:
    glass = overlay(MAP, smooth=False, size=(3, 4))
    expected = np.rint(255 * colour(MAP / 2)).astype(int)
    assert np.abs(glass.astype(int) - expected).max() <= 1
    assert (glass[MAP == 0] == 255).all()


def test_nothing_is_stretched() -> None:
    """A map that is all positive keeps its distance from zero: min-max would send its lowest score to one end."""
    lowest = overlay(np.array([[1.0, 1.1]]), smooth=False, size=(1, 2))[0, 0].astype(int)
    assert np.abs(lowest - np.rint(255 * colour(np.array(1 / 1.1)))).max() <= 1


@settings(max_examples=25, deadline=None)
@given(
    arrays("float64", (3, 4), elements=st.floats(-10, 10).map(lambda score: round(score, 9))),  # no unit makes it 0
    st.sampled_from([1e-30, 0.5, 1e30]),
)
def test_the_unit_of_the_scores_does_not_matter(scores: np.ndarray, unit: float) -> None:
    assert np.abs(overlay(scores, IMAGE).astype(int) - overlay(scores * unit, IMAGE)).max() <= 1


@settings(max_examples=25, deadline=None)
@given(arrays("float64", (3, 4), elements=st.floats(-10, 10)))
def test_turning_the_sign_swaps_the_colours_and_nothing_else(scores: np.ndarray) -> None:
    one, other = overlay(scores).astype(int), overlay(-scores).astype(int)
    assert ((one[..., 0] >= one[..., 2]) == (other[..., 2] >= other[..., 0])).all()


def test_a_given_limit_makes_maps_comparable() -> None:
    weak = overlay(MAP, limit=20, smooth=False, size=(3, 4)).astype(int)
    assert np.abs(weak - np.rint(255 * colour(MAP / 20))).max() <= 1


@pytest.mark.parametrize("smooth", [True, False])
def test_enlarging_agrees_with_torch(smooth: bool) -> None:
    tensor = torch.from_numpy(MAP)[None, None]
    for size in ((3, 4), (48, 64), (50, 33), (7, 90), (2, 3)):
        mode: Any = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest-exact"}
        expected = torch.nn.functional.interpolate(tensor, size, **mode)[0, 0].numpy()
        assert enlarge(MAP, size, smooth=smooth) == pytest.approx(expected, abs=1e-12)


def test_a_single_patch_fills_the_picture() -> None:
    assert (enlarge(np.array([[3.0]]), (5, 7)) == 3).all()


def test_the_image_stays_visible_under_the_strongest_colour() -> None:
    stripes = np.zeros((24, 32, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    for score in (1.0, -1.0, 0.0):
        glass = overlay(np.array([[score]]), stripes, limit=1.0).astype(float).mean(axis=2)
        assert glass[:, 0].min() - glass[:, 1].max() > 40


def test_colour_shows_on_black() -> None:
    black = np.zeros((24, 32, 3), dtype=np.uint8)
    red, blue = overlay(np.array([[1.0, -1.0]]), black, smooth=False)[0, [0, -1]].astype(int)
    assert red[0] - red[2] > 50
    assert blue[2] - blue[0] > 50


def test_opacity_goes_from_the_photograph_to_the_glass() -> None:
    assert (overlay(MAP, IMAGE, opacity=0) == IMAGE).all()
    half = overlay(MAP, IMAGE, opacity=0.5).astype(int)
    assert np.abs(half - (IMAGE.astype(int) + overlay(MAP, IMAGE)) / 2).max() <= 1


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf])
def test_no_signal_leaves_the_image_grey(bad: float) -> None:
    scores = np.zeros((3, 4))
    scores[1, 1] = bad
    shown = overlay(scores, IMAGE)
    assert strength(scores) == 0
    assert (shown[..., 0] == shown[..., 1]).all()
    assert (shown[..., 1] == shown[..., 2]).all()
    assert shown.std() > 10


def test_sizes() -> None:
    assert overlay(MAP).shape == (48, 64, 3)
    assert overlay(MAP, IMAGE).shape == IMAGE.shape
    assert overlay(MAP, IMAGE, size=(10, 90)).shape == (10, 90, 3)
    assert overlay(MAP.astype(np.float32), IMAGE).dtype == np.uint8
