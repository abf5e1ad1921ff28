"""Numbers and words in pictures."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitrail.plotting.canvas import lines, number, printable, write


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0704, "0.0704"), (-2.0, "−2"), (123456.0, "1.23×10⁵"), (-1e-12, "−1×10⁻¹²"), (0.0, "0"), (float("nan"), "nan")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text
    if value > 0:
        assert number(value, sign=True) == f"+{text}"


def test_printable_shows_what_cannot_be_drawn() -> None:
    assert printable("a\nb\tc\udce9 é −") == "a□b□c□ é −"


@pytest.fixture
def figure() -> Figure:
    made = Figure(figsize=(4, 3), dpi=100)
    FigureCanvasAgg(made)
    return made


@pytest.mark.parametrize(
    "text", ["zebra", "a name of a very great many words that will not fit at any size", "W" * 300]
)
def test_written_lines_fit_and_keep_their_ending(figure: Figure, text: str) -> None:
    label = write(figure, 0.5, 1.0, text, width=1.5, size=12.0, ending=" 82.1 %")
    assert label.get_window_extent().width / 100 <= 1.51
    assert label.get_text().endswith(" 82.1 %")
    assert label.get_text().startswith(text[:3])
    assert 6 <= float(label.get_fontsize()) <= 12


def test_dollars_are_dollars(figure: Figure) -> None:
    label = write(figure, 0.5, 1.0, r"a$\frac$_b$", width=3.0)
    figure.canvas.draw()
    assert label.get_text() == r"a$\frac$_b$"


def test_lines_break_between_words() -> None:
    assert lines("one two three", 0.5, 8.0) == ["one two", "three"]
