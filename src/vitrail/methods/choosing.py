"""Which methods are meant: by name, or all that share a trait."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..attention.gradient_modes import check_gradient_mode
from ..errors import OptionError
from .registry import METHODS, MethodInfo, find_method, list_methods

__all__ = ["GROUPS", "Chosen", "choose_methods", "passes_of"]

FEW = 4  # passes, forward and backward together
SILENT = {"and", "the", "of", "part", "first", "last", "block", "blocks", "block's"}  # they say which part of a pass


@dataclass(frozen=True)
class Chosen:
    """A method, and the gradient mode in which it is asked; None for the mode of all."""

    info: MethodInfo
    gradient: str | None = None

    @property
    def label(self) -> str:
        """The method's name, with the gradient mode where one was named: "complete:libra"."""
        return self.info.name if self.gradient is None else f"{self.info.name}:{self.gradient}"


def passes_of(info: MethodInfo) -> int | None:
    """Passes of a method together, a pass through some blocks counted as a whole one; None where they are not fixed.

    Example:
        >>> passes_of(METHODS["complete"])
        2
    """
    count = 0
    for word in re.split(r"[\s,+]+", info.passes.strip()):
        found = re.fullmatch(r"(\d*)(F|B|LRP)", word)  # LRP: a backward pass by other rules
        if found:
            count += int(found[1] or 1)
        elif word not in SILENT:
            return None
    return count


# What can stand for several methods, each by what the registry knows of them.
GROUPS: dict[str, Callable[[MethodInfo], bool]] = {
    "all": lambda _: True,
    "fast": lambda info: (passes_of(info) or FEW + 1) <= FEW,
    "signed": lambda info: info.signed,
    "unsigned": lambda info: not info.signed,
    "class": lambda info: info.class_specific,
    "gradient": lambda info: info.uses_gradient,
    "patch": lambda info: info.level == "patch",
    "pixel": lambda info: info.level == "pixel",
}


def choose_methods(names: str | Sequence[str] = "all") -> list[Chosen]:
    """The methods that are named, each once, in the order in which they are named.

    Args:
        names: names or aliases of methods, or groups: "all", "fast" (at most four passes in all), "signed", "unsigned",
            "class" (the map depends on the class), "gradient" (gradient= means something), "patch", "pixel" (the map's
            level). Several in one word are separated by commas; "-name" or "-group" takes methods out again; a gradient
            mode may follow a colon, as in "complete:libra".

    Raises:
        UnknownMethodError: for a name that is neither a method nor a group.
        OptionError: when no method is left, and for a gradient mode that means nothing.

    Example:
        >>> [one.label for one in choose_methods("raw,gae,complete:libra,-raw")]
        ['gae', 'complete:libra']
    """
    words = [names] if isinstance(names, str) else names
    chosen: dict[str, Chosen] = {}
    for word in (part.strip() for text in words for part in text.split(",")):
        if not word:
            continue
        name, _, mode = word.removeprefix("-").partition(":")
        if word.startswith("-"):
            out = {one.name for one in _named(name)}
            chosen = {label: one for label, one in chosen.items() if one.info.name not in out}
            continue
        gradient = check_gradient_mode(mode) if mode else None
        for info in _named(name):
            if gradient is not None and gradient != "full" and not info.uses_gradient:
                raise OptionError(f"{word}: {info.name} uses no gradient, so {gradient!r} changes nothing")
            one = Chosen(info, gradient)
            chosen.setdefault(one.label, one)
    if not chosen:
        raise OptionError(f"methods={names!r} names no method; there are {', '.join(METHODS)}, and {', '.join(GROUPS)}")
    return list(chosen.values())


def _named(name: str) -> list[MethodInfo]:
    """The methods of a group, or the one of that name."""
    if name in GROUPS and name not in METHODS:
        return [info for info in list_methods() if GROUPS[name](info)]
    return [find_method(name, {})]
