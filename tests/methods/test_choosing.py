"""Methods by name and by group, as the registry knows them."""

from dataclasses import replace

import pytest

from vitrail.errors import OptionError, UnknownMethodError
from vitrail.methods import METHODS, list_methods
from vitrail.methods.registry import FEW, choose_methods, passes_of


def names(given):
    return [one.label for one in choose_methods(given)]


def test_all_are_all_in_the_registry_s_order():
    assert names("all") == [info.name for info in list_methods() if info.name != "mda"]
    assert names("raw,mda") == ["raw", "mda"]


@pytest.mark.parametrize(
    ("group", "trait"),
    [
        ("signed", lambda info: info.signed),
        ("unsigned", lambda info: not info.signed),
        ("class", lambda info: info.class_specific),
        ("gradient", lambda info: info.uses_gradient),
        ("patch", lambda info: info.level == "patch"),
    ],
)
def test_groups_follow_the_metadata(group, trait):
    assert names(group) == [info.name for info in list_methods() if trait(info) and info.name != "mda"]


@pytest.mark.parametrize(
    ("passes", "count"),
    [
        ("1F", 1),
        ("1F 1B", 2),
        ("20F+20B", 40),
        ("20F, 1B, 19B of the last block", 40),
        ("1F and the last block's B", 2),
        ("1F 1B + LRP", 3),
        ("samples F", None),
        ("1F + masks × ½F", None),
        ("2F, 22 × (the last 1–2 blocks F, B)", None),
    ],
)
def test_passes_are_counted_where_they_are_fixed(passes, count):
    assert passes_of(replace(METHODS["raw"], passes=passes)) == count


def test_fast_leaves_out_what_takes_many_passes_or_an_unknown_number(monkeypatch):
    for name, passes in (("one", "2F 2B"), ("many", "20F 20B"), ("unknown", "masks F")):
        monkeypatch.setitem(METHODS, name, replace(METHODS["raw"], name=name, passes=passes))
    fast = names("fast")
    assert {"raw", "complete", "one"} <= set(fast)
    assert not {"many", "unknown"} & set(fast)
    assert all((passes_of(METHODS[name]) or 0) <= FEW for name in fast)


def test_lists_commas_aliases_modes_and_what_is_taken_out():
    assert names(["complete", "raw,positive", "complete"]) == ["complete", "raw", "gae"]
    assert names("complete,complete:libra,complete:leaf") == ["complete", "complete:libra", "complete:leaf"]
    assert names("signed,-complete:libra,raw") == [n for n in names("signed") if n != "complete"] + ["raw"]
    assert not set(names("all,-gradient")) & set(names("gradient"))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("nope", UnknownMethodError, "no method is called 'nope'; there are raw, rollout"),
        ("raw,-raw", OptionError, "names no method; there are raw, .* and all, fast"),
        ("", OptionError, "names no method"),
        ("raw:libra", OptionError, "raw uses no gradient, so 'libra' changes nothing"),
        ("complete:half", OptionError, "choose one of full, leaf, libra, gim"),
    ],
)
def test_words_that_mean_nothing_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        choose_methods(given)
