"""The protocols by name: what each asks for, which options it takes, and how its numbers are put together."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...errors import OptionError, UnknownProtocolError
from ...metrics.aggregation import Statistic
from ..case import Case
from ..questions import Evaluation

__all__ = ["PROTOCOLS", "ProtocolInfo", "find_protocol", "list_protocols", "register_protocol"]

Summary = Callable[..., Mapping[str, Statistic]]


@dataclass(frozen=True)
class ProtocolInfo:
    """What is known of a protocol without running it.

    `function` takes a case, a raw map and the options, and is an `Evaluation`. `summarise` takes the `Curves` of all
    images and the same options, and gives the numbers by which methods are compared. `needs` names what must be known
    of an image ("label", "boxes", "mask", "regions"); `signed` whether scores below zero mean something to it.
    """

    name: str
    function: Callable[..., Evaluation] = field(repr=False)
    summarise: Summary = field(repr=False)
    needs: tuple[str, ...]
    reference: str
    summary: str
    signed: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The protocol's own keyword options and their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in parameters}


PROTOCOLS: dict[str, ProtocolInfo] = {}


def register_protocol(
    name: str, *, summarise: Summary, reference: str, needs: tuple[str, ...] = (), signed: bool = False
) -> Callable[[Callable[..., Evaluation]], Callable[..., Evaluation]]:
    """Enter a protocol under its name; the first sentence of its docstring says what it measures.

    Raises:
        OptionError: for a name that is taken.
    """

    def enter(function: Callable[..., Evaluation]) -> Callable[..., Evaluation]:
        if name in PROTOCOLS:
            raise OptionError(f"a protocol named {name!r} is registered already")
        text = inspect.getdoc(function) or ""
        summary = " ".join(text.split("\n\n")[0].split())
        PROTOCOLS[name] = ProtocolInfo(name, function, summarise, needs, reference, summary, signed)
        return function

    return enter


def find_protocol(name: str, options: Mapping[str, Any] | None = None) -> ProtocolInfo:
    """The protocol of that name, which must know the options.

    Raises:
        UnknownProtocolError: for a name that is not registered.
        OptionError: for an option that the protocol does not have.
    """
    info = PROTOCOLS.get(name)
    if info is None:
        raise UnknownProtocolError(f"no protocol is called {name!r}; there are {', '.join(PROTOCOLS)}")
    for option in options or {}:
        if option not in info.options:
            raise OptionError(f"{name} has no option {option!r}; its own: {', '.join(info.options) or 'none'}")
    return info


def list_protocols() -> list[ProtocolInfo]:
    """All protocols in the order in which they were registered."""
    return list(PROTOCOLS.values())


def check_map(case: Case, scores: Float[Tensor, "rows cols"]) -> None:
    """Refuse a map that does not divide the image.

    Raises:
        OptionError: naming both sizes.
    """
    (height, width), (rows, cols) = case.size, scores.shape
    if height % rows or width % cols:
        raise OptionError(f"a map of {rows}×{cols} places does not divide an image of {height}×{width} pixels")
