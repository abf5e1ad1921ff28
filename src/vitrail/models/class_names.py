"""From what a person calls a class to its index, and back."""

import difflib
import operator
from collections.abc import Sequence
from typing import Any

from ..errors import AmbiguousClassError, UnknownClassError

__all__ = ["class_index", "normal", "short_name"]

_SHOWN = 10  # matches listed in a message before "and … more"


def class_index(
    wanted: Any, names: Sequence[str] | None = None, count: int | None = None, *, whole: bool = False
) -> int:
    """The index of the class that `wanted` names.

    `wanted` is an index (Python, NumPy or torch integer, or its digits in a string) or a name. Names are compared
    without regard to case, with underscores read as spaces. The whole name and each of its synonyms (separated by
    commas) match exactly; failing that, whole words of a name match when they occur in one class only. `count` is the
    number of classes, where it is known from elsewhere than `names`. With `whole`, names are sentences, and match only
    as a whole.

    Raises:
        AmbiguousClassError: when several classes go by that name, listing them.
        UnknownClassError: when none does (naming those spelt much alike), when the index is out of range, or when the
            model has no names.

    Example:
        >>> class_index("American eagle", ["kite", "bald eagle, American eagle, Haliaeetus leucocephalus"])
        1
        >>> class_index("eagle", ["kite", "bald eagle, American eagle, Haliaeetus leucocephalus"])
        1
    """
    count = len(names) if names is not None else count
    index = _as_integer(wanted)
    if index is not None:
        return _in_range(index, count)
    if not isinstance(wanted, str) or not normal(wanted):
        raise UnknownClassError(f"a class is an index or a name, not {wanted!r} of type {type(wanted).__name__}")
    if names is not None:
        found = (
            [i for i, name in enumerate(names) if normal(name) == normal(wanted)] if whole else _matches(wanted, names)
        )
        if len(found) == 1:
            return found[0]
        if found:
            raise AmbiguousClassError(
                f"{wanted!r} is the name of {len(found)} classes: {_listed(found, names)}; "
                "give the index, or more of the name"
            )
    if wanted.strip().lstrip("+-").isdecimal():
        return _in_range(int(wanted), count)
    if names is None:
        span = f"0 to {count - 1}" if count else "counted from 0"
        raise UnknownClassError(
            f"this model has no class names, so {wanted!r} cannot be found; give the index ({span}), or class_names="
        )
    near = _near(wanted, names)
    if whole:
        listed = _listed(range(len(names)), names)
        raise UnknownClassError(f"{wanted!r} is none of the {len(names)} texts given: {listed}; give it too, in texts=")
    hint = f"near it: {_listed(near, names)}" if near else "and none is spelt like it"
    raise UnknownClassError(f"no class of the model's {len(names)} is called {wanted!r}; {hint}")


def short_name(index: int, names: Sequence[str] | None) -> str:
    """The first synonym of the class, or "class 7" where there is no name.

    Example:
        >>> short_name(0, ["African elephant, Loxodonta africana"]), short_name(7, None)
        ('African elephant', 'class 7')
    """
    if names is None or not 0 <= index < len(names):
        return f"class {index}"
    return names[index].split(",")[0].strip() or f"class {index}"


def _as_integer(wanted: Any) -> int | None:
    if isinstance(wanted, (bool, str)):
        return None
    try:
        return operator.index(wanted)  # also NumPy and torch integers
    except (TypeError, ValueError):
        return None


def _in_range(index: int, count: int | None) -> int:
    if index < 0 or (count is not None and index >= count):
        span = f"the model's {count} classes are 0 to {count - 1}" if count else "classes are counted from 0"
        raise UnknownClassError(f"there is no class {index}: {span}")
    return index


def normal(name: str) -> str:
    """A name as it is compared: without regard to case, underscores and runs of space read as one space.

    Example:
        >>> normal("Bald__eagle ")
        'bald eagle'
    """
    return " ".join(name.replace("_", " ").casefold().split())


def _matches(wanted: str, names: Sequence[str]) -> list[int]:
    """All exact matches; where there is none, all names that hold the words of `wanted` side by side."""
    wanted, plain = normal(wanted), [normal(name) for name in names]
    exact = [i for i, name in enumerate(plain) if name == wanted or wanted in (s.strip() for s in name.split(","))]
    if exact:
        return exact
    words = f" {_words(wanted)} "
    return [i for i, name in enumerate(plain) if words.strip() and words in f" {_words(name)} "]


def _words(name: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in name).split())


def _near(wanted: str, names: Sequence[str]) -> list[int]:
    """Indices of the classes with a synonym spelt much like `wanted`, best first."""
    owners: dict[str, int] = {}
    for index, name in enumerate(names):
        for synonym in normal(name).split(","):
            owners.setdefault(synonym.strip(), index)
    close = difflib.get_close_matches(normal(wanted), owners, n=5, cutoff=0.6)
    return list(dict.fromkeys(owners[synonym] for synonym in close))


def _listed(indices: Sequence[int], names: Sequence[str]) -> str:
    shown = "; ".join(f"{i} ({names[i]})" for i in indices[:_SHOWN])
    return shown + (f"; and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else "")
