"""A method's options as words on a command line: made into values of the type that the option has."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

from ..errors import OptionError
from .registry import MethodInfo, find_method

__all__ = ["option_value", "typed", "typed_options"]

KINDS: dict[type, str] = {
    type(None): "none",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "values separated by commas",
    str: "a word",
}
TRUTH = {"true": True, "yes": True, "false": False, "no": False}


def typed_options(info: MethodInfo, words: Mapping[str, str]) -> dict[str, Any]:
    """Returns the method's options as values: each word is read as the option's default and annotation say.

    Raises:
        OptionError: for an option that the method does not know, or a word that is no such value.

    Example:
        >>> from vitrail.methods import METHODS
        >>> typed_options(METHODS["rollout"], {"row_normalise": "false"})
        {'row_normalise': False}
    """
    find_method(info.name, dict(words))
    return typed(info.function, words, f"method {info.name!r}")


def typed(function: Callable[..., Any], words: Mapping[str, str], owner: str) -> dict[str, Any]:
    """Returns the keyword options of a function, each word read as the option's default and annotation say.

    Raises:
        OptionError: for a word that is no such value; `owner` says whose option it is.
    """
    parameters = inspect.signature(function).parameters
    values = {}
    for name, word in words.items():
        default, annotation = parameters[name].default, parameters[name].annotation
        try:
            values[name] = option_value(word, default, annotation)
        except ValueError as error:
            raise OptionError(f"{name}={word} of {owner}: {name} is {error} (default {default})") from None
    return values


def option_value(word: str, default: Any, annotation: Any = Any) -> Any:
    """Returns the value that a word stands for, by an option's default and annotation.

    Raises:
        ValueError: saying what the option takes, when the word is no such value.

    Example:
        >>> option_value("12", 20), option_value("0.5", None, float | None), option_value("true", "merged")
        (12, 0.5, 'true')
    """
    kinds = _kinds(default, annotation)
    for kind in kinds:
        if kind is tuple and "," not in word and str in kinds:
            continue  # one word is one word
        found = _read(word.strip(), kind)
        if found is not _NO:
            return found
    raise ValueError(" or ".join(KINDS[kind] for kind in kinds if kind is not type(None)))


_NO = object()


def _kinds(default: Any, annotation: Any) -> list[type]:
    """Returns the types that the option may have, in the order in which a word is tried."""
    if default is inspect.Parameter.empty:
        default = None
    said = {_kind(one) for one in (get_args(annotation) if _is_union(annotation) else (annotation,))} - {None}
    allowed = {kind for kind in said if kind is not None}
    if default is not None:
        allowed.add(tuple if isinstance(default, list | tuple) else type(default))
    if not allowed - {type(None)}:  # nothing is known of it: whatever the word looks like
        allowed |= set(KINDS)
    return [kind for kind in KINDS if kind in allowed]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) is not None and not _is_sequence(annotation)


def _is_sequence(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str


def _kind(annotation: Any) -> type | None:
    if _is_sequence(annotation):
        return tuple
    return annotation if annotation in KINDS else None


def _read(word: str, kind: type) -> Any:
    if kind is type(None):
        return None if word.lower() in ("none", "null") else _NO
    if kind is bool:
        return TRUTH.get(word.lower(), _NO)
    if kind is int:
        return int(word) if word.removeprefix("-").isdecimal() and word.isascii() else _NO
    if kind is float:
        try:
            number = float(word)
        except ValueError:
            return _NO
        return number if math.isfinite(number) else _NO
    if kind is tuple:
        parts = [part.strip() for part in word.strip("()[]").split(",")]
        return tuple(option_value(part, None, int | float | str) for part in parts if part)
    return word
