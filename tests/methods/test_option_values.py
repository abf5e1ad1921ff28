"""Options as words: read as the method's defaults and annotations say."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from vitrail.errors import OptionError
from vitrail.methods import METHODS
from vitrail.methods.option_values import option_value, typed_options


@pytest.mark.parametrize(
    ("word", "default", "annotation", "value"),
    [
        ("12", 20, int, 12),
        ("-3", 0, int, -3),
        ("2", 0.5, float, 2.0),
        ("1e-3", 0.5, float | int, 0.001),
        ("no", True, bool, False),
        ("TRUE", False, bool, True),
        ("true", "merged", str, "true"),  # a word stays one, whatever it looks like
        ("12", "all", str, "12"),
        ("7", None, str | int | None, 7),
        ("blocks.3.norm1", None, str | int | None, "blocks.3.norm1"),
        ("none", None, int | None, None),
        ("None", 5, int | None, None),
        ("1,2,5", (0,), Sequence[int], (1, 2, 5)),
        ("4", (0,), tuple, (4,)),
        ("0.5", None, Any, 0.5),
        ("yes", None, Any, True),
        ("word", None, Any, "word"),
    ],
)
def test_words_become_values(word, default, annotation, value):
    found = option_value(word, default, annotation)
    assert found == value
    assert type(found) is type(value)


def method(run, *, samples: int = 20, ratio: float = 0.5, exact: bool = False, layer: int | None = None):
    """A method."""


INFO = replace(METHODS["raw"], name="toy", function=method)


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", INFO)


def test_all_of_a_method_s_options():
    words = {"samples": "5", "ratio": "1", "exact": "true", "layer": "none"}
    assert typed_options(INFO, words) == {"samples": 5, "ratio": 1.0, "exact": True, "layer": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"samples": "many"}, r"samples=many of method 'toy': samples is a whole number \(default 20\)"),
        ({"samples": "2.5"}, "samples is a whole number"),
        ({"ratio": "nan"}, "ratio is a number"),
        ({"exact": "1"}, "exact is true or false"),
        ({"masks": "5"}, "method 'toy' does not know masks; it takes samples, ratio, exact, layer"),
    ],
)
def test_ill_typed_words_and_unknown_names_are_refused(words, message):
    with pytest.raises(OptionError, match=message):
        typed_options(INFO, words)
