"""What can go wrong in the bestiary, one type per cause."""

from difflib import get_close_matches
from typing import NoReturn

from vitrail.errors import VitrailError


class BestiaryError(VitrailError):
    """Base of every error of the bestiary."""


class UnknownNameError(BestiaryError, ValueError):
    """A species, family, part, variant, kind or creature that does not exist."""


class ImpossibleCreatureError(BestiaryError, ValueError):
    """A combination of parts that no creature can have."""


def refuse_name(what: str, name: object, known: tuple[str, ...]) -> NoReturn:
    """Raise `UnknownNameError` for `name`, with the known names and the nearest one."""
    near = get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownNameError(f"unknown {what} {name!r}; known: {', '.join(known)}.{hint}")
