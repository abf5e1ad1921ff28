"""The colours: white at zero, red for, blue against, equally strong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.plotting.overlay import AGAINST, FOR, LUMA, colour, grey

SCORES = st.floats(-1, 1)


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L*, written out on its own: the palette is made in Oklab and shall hold up in another yardstick."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ LUMA
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def test_zero_is_exactly_white() -> None:
    assert colour(np.array([0.0, -0.0])).tolist() == [[1, 1, 1], [1, 1, 1]]


@given(SCORES)
def test_red_is_for_and_blue_against(score: float) -> None:
    red, _, blue = colour(np.array(score))
    assert (red >= blue) if score >= 0 else (blue >= red)
    if abs(score) > 0.02:
        assert abs(red - blue) > abs(score) / 4


def test_both_sides_are_equally_strong() -> None:
    strengths = np.linspace(0, 1, 101)
    red, blue = lightness(colour(strengths)), lightness(colour(-strengths))
    assert np.abs(red - blue).max() < 6  # of 100; the two hues cannot agree in every yardstick
    assert (np.diff(red) < 0).all()
    assert (np.diff(blue) < 0).all()
    assert 40 < red[-1] < 55
    assert 40 < blue[-1] < 55


def test_no_colour_is_cut_off_before_the_end() -> None:
    inner = colour(np.concatenate([np.linspace(-0.999, -0.001, 500), np.linspace(0.001, 0.999, 500)]))
    assert inner.min() > 0
    assert inner.max() <= 1
    steps = np.abs(np.diff(colour(np.linspace(-1, 1, 2001)), axis=0)).max()
    assert steps < 0.02  # no bands


@pytest.mark.parametrize(("beyond", "end"), [(1.5, FOR), (-7.0, AGAINST), (np.inf, FOR)])
def test_beyond_the_ends(beyond: float, end: tuple[float, float, float]) -> None:
    assert colour(np.array(beyond)).tolist() == list(end)


def test_grey_is_luminance() -> None:
    image = np.array([[[0, 0, 0], [255, 255, 255], [0, 255, 0]]], dtype=np.uint8)
    assert grey(image)[0] == pytest.approx([0, 1, 0.7152])


def test_page_command_and_documentation_have_the_same_two_colours():
    """Words in red and blue are those of the maps: in the reports, on the page and in the documentation."""
    from importlib.resources import files
    from pathlib import Path

    red, blue = ("#" + "".join(f"{round(255 * value):02x}" for value in side) for side in (FOR, AGAINST))
    reports = files("vitrail.plotting").joinpath("web.css").read_text(encoding="utf-8")
    assert f"--for: {red}; --against: {blue};" in reports
    documentation = Path(__file__).parents[2] / "docs" / "theme" / "vitrail.css"
    if not documentation.is_file():
        return
    style = documentation.read_text(encoding="utf-8")
    assert f"--vitrail-for: {red};" in style
    assert f"--vitrail-against: {blue};" in style
    pale = ["#" + "".join(f"{round(255 * value):02x}" for value in colour(np.array(side / 2))) for side in (1.0, -1.0)]
    assert all(f"color: {tint}" in style for tint in pale)  # on a dark page
    assert f"--for: {pale[0]}; --against: {pale[1]};" in reports
